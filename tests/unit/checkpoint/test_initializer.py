"""Weights from rank to rank, between real processes over gloo: the same bits as from files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ryzanstein.model_plan import ModelError, open_checkpoint, read_model_config
from ryzanstein_shard_worker.checkpoint import (
    DistributedCheckpointLoader,
    DistributedParameterInitializer,
    InitializationError,
)
from ryzanstein_shard_worker.communication import CommunicationError, CommunicationHandler
from tests.checkpoints import Checkpoints

from .ranks import Ranks
from .weights import assert_same_bits, cut, module_of_parameters, read_whole

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    group = Ranks(4, tmp_path_factory.mktemp("ranks"))
    yield group
    group.close()


def _initializer(
    handler: CommunicationHandler, directory: Path, dtype: torch.dtype, part_bytes: int = 1000
) -> DistributedParameterInitializer:
    config = read_model_config(directory)
    return DistributedParameterInitializer(handler, config, dtype, _CPU, part_bytes=part_bytes)


def _hand_over(
    handler: CommunicationHandler, directory: Path, source_rank_of: dict[int, int], dtype: torch.dtype
) -> tuple[dict[str, Tensor] | None, list[float], list[str]]:
    """What a rank received, what progress it saw, and which modules were announced."""
    initializer = _initializer(handler, directory, dtype)
    fractions: list[float] = []
    announced: list[str] = []
    if handler.rank not in source_rank_of:
        index = open_checkpoint(directory) if handler.rank in source_rank_of.values() else None
        initializer.initialize(None, source_rank_of, index, fractions.append, announced.append)
        return None, fractions, announced
    loader = DistributedCheckpointLoader(
        open_checkpoint(directory),
        read_model_config(directory),
        handler.rank,
        handler.world_size,
        dtype,
        _CPU,
    )
    tensors = {name: tensor.fill_(torch.nan) for name, tensor in loader.allocate().items()}
    model = module_of_parameters(tensors) if handler.rank % 2 else tensors
    initializer.initialize(model, source_rank_of, None, fractions.append, announced.append)
    return tensors, fractions, announced


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_ranks_receive_is_what_they_would_have_loaded(
    checkpoints: Checkpoints, ranks: Ranks, family: str, dtype: torch.dtype
) -> None:
    directory = checkpoints(family, dtype="bfloat16", max_shard_size="60KB")
    source_rank_of = {1: 0, 2: 0, 3: 0} if dtype == torch.float32 else {3: 1, 0: 2}
    config, whole = read_model_config(directory), read_whole(directory)
    for rank, result in enumerate(ranks.call(_hand_over, directory, source_rank_of, dtype)):
        assert not isinstance(result, Exception), result
        tensors, fractions, announced = result
        if rank in source_rank_of:
            assert_same_bits(tensors, cut(whole, config, rank, 4, dtype))
            assert announced == ["embedding", "layers.0", "layers.1", "norm", "head"]
            assert fractions == sorted(fractions)
            assert fractions[-1] == 1.0
        else:
            assert (tensors, fractions, announced) == (None, [], [])


def _nothing_to_do(handler: CommunicationHandler, directory: Path) -> int:
    _initializer(handler, directory, torch.float32).initialize(None, {})
    return handler.last.sequence


def test_without_receivers_nothing_is_sent(checkpoints: Checkpoints, ranks: Ranks) -> None:
    assert ranks.call(_nothing_to_do, checkpoints("llama")) == [0, 0, 0, 0]


def _allocate(directory: Path, rank: int) -> dict[str, Tensor]:
    index, config = open_checkpoint(directory), read_model_config(directory)
    return DistributedCheckpointLoader(index, config, rank, 4, torch.float32, _CPU).allocate()


def _without_index(handler: CommunicationHandler, directory: Path) -> None:
    model = _allocate(directory, 1) if handler.rank == 1 else None
    _initializer(handler, directory, torch.float32).initialize(model, {1: 0})


def _without_model(handler: CommunicationHandler, directory: Path) -> None:
    _initializer(handler, directory, torch.float32).initialize(None, {1: 0}, open_checkpoint(directory))


def _misshapen_model(handler: CommunicationHandler, directory: Path) -> None:
    tensors = {**_allocate(directory, handler.rank), "norm.weight": torch.empty(3)}
    _initializer(handler, directory, torch.float32).initialize(tensors, {1: 0}, open_checkpoint(directory))


def _incomplete_model(handler: CommunicationHandler, directory: Path) -> None:
    _initializer(handler, directory, torch.float32).initialize({}, {1: 0}, open_checkpoint(directory))


def _unequal_dtypes(handler: CommunicationHandler, directory: Path) -> None:
    dtype = torch.bfloat16 if handler.rank == 2 else torch.float32
    tensors, index = _allocate(directory, handler.rank), open_checkpoint(directory)
    _initializer(handler, directory, dtype).initialize(tensors, {3: 0}, index)


@pytest.mark.parametrize(
    ("function", "at", "says", "elsewhere"),
    [
        (
            _without_index,
            0,
            r"rank 0 is to send weights to \[1\] but has no checkpoint",
            "rank 0 can't take part",
        ),
        (_without_model, 1, "rank 1 is to receive weights but has no model", "rank 1 can't take part"),
        (
            _misshapen_model,
            1,
            r"parameter norm\.weight: the model has \[3\], rank 1 of 4 needs \[64\]",
            "rank 1 can't take part",
        ),
        (_incomplete_model, 1, r"no parameter embedding\.weight", "rank 1 can't take part"),
    ],
)
def test_a_rank_that_can_not_take_part_is_named_on_all_ranks(
    checkpoints: Checkpoints, ranks: Ranks, function: object, at: int, says: str, elsewhere: str
) -> None:
    results = ranks.call(function, checkpoints("llama"))  # type: ignore[arg-type]
    for rank, error in enumerate(results):
        assert isinstance(error, InitializationError)
        with pytest.raises(InitializationError, match=says if rank == at else elsewhere):
            raise error


def test_ranks_that_were_told_different_things_find_out(checkpoints: Checkpoints, ranks: Ranks) -> None:
    for error in ranks.call(_unequal_dtypes, checkpoints("llama")):
        assert isinstance(error, InitializationError)
        assert "rank 2 and rank 0 were told different things to hand over" in str(error)


def _wrong_source(handler: CommunicationHandler, directory: Path, source_rank_of: dict[int, int]) -> None:
    _initializer(handler, directory, torch.float32).initialize({}, source_rank_of, open_checkpoint(directory))


@pytest.mark.parametrize("source_rank_of", [{1: 4}, {1: 1}, {1: 2, 2: 0}])
def test_a_source_that_has_nothing_is_refused(
    checkpoints: Checkpoints, ranks: Ranks, source_rank_of: dict[int, int]
) -> None:
    for error in ranks.call(_wrong_source, checkpoints("llama"), source_rank_of):
        assert isinstance(error, InitializationError)
        assert "can't be the source of rank 1 in a group of 4" in str(error)


def _damaged(handler: CommunicationHandler, directory: Path) -> tuple[str, float]:
    """Rank 0's file loses its last byte while rank 1 receives the third parameter. (Only that: a page that is gone
    while it is read would end the process with SIGBUS.)"""
    started_at = time.monotonic()
    index = open_checkpoint(directory)
    weights = directory / "model.safetensors"
    size = weights.stat().st_size

    def cut_off(fraction: float) -> None:
        if fraction > 0.4:
            os.truncate(weights, size - 1)

    try:
        model = _allocate(directory, 1) if handler.rank == 1 else None
        _initializer(handler, directory, torch.float32).initialize(model, {1: 0}, index, cut_off)
    except (ModelError, CommunicationError) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - started_at
    return "no error", 0.0


def test_a_source_whose_file_breaks_ends_it_for_all_and_the_parameter_is_named(
    checkpoints: Checkpoints, ranks: Ranks, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(checkpoints("llama"), tmp_path / "model"))
    results = ranks.call(_damaged, directory)
    assert results[0][0].startswith("ModelError: ")
    assert "changed after its header was read" in results[0][0]
    for text, duration_s in results[1:]:
        assert text.startswith("CommunicationError: ")
        assert "(while parameter layers." in text
        assert duration_s < 10, "the others wait for the group's timeout"


def _broadcast(handler: CommunicationHandler, directory: Path, source: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(handler.rank)
    tensors = {
        "large": torch.randn(700, generator=generator),
        "strided": torch.randn(6, 8, generator=generator)[:, 1:4],
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
    }
    _initializer(handler, directory, torch.float32).broadcast(tensors, source)
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_whole_parameters_are_those_of_the_source_on_every_rank(
    checkpoints: Checkpoints, ranks: Ranks
) -> None:
    results = ranks.call(_broadcast, checkpoints("llama"), 2)
    expected = torch.randn(700, generator=torch.Generator().manual_seed(2))
    for tensors in results:
        assert torch.equal(tensors["large"], expected)
        assert_same_bits(tensors, results[2])


def _broadcast_unequal(handler: CommunicationHandler, directory: Path) -> None:
    tensors = {"a": torch.zeros(3 if handler.rank == 1 else 4)}
    _initializer(handler, directory, torch.float32).broadcast(tensors, 0)


def test_a_broadcast_of_unequal_shapes_is_refused_before_anything_is_sent(
    checkpoints: Checkpoints, ranks: Ranks
) -> None:
    for error in ranks.call(_broadcast_unequal, checkpoints("llama")):
        assert isinstance(error, InitializationError)
        assert "rank 1 and rank 0 were told different things" in str(error)

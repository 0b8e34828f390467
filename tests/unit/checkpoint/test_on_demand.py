"""Parameters that get their memory with their first slice: the same bits, and never the whole model at once."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ryzanstein.model_plan import (
    FP8,
    ModelError,
    open_checkpoint,
    read_model_config,
    weight_bytes_per_rank,
)
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader, DistributedParameterInitializer
from ryzanstein_shard_worker.communication import CommunicationHandler, RebindableHandler, SingleHandler
from ryzanstein_shard_worker.models import Decoder, build_model
from ryzanstein_shard_worker.on_demand import is_put_off, provide, put_off
from ryzanstein_shard_worker.parallel import dense_causal_attend
from tests.checkpoints import FAMILIES, Checkpoints
from tests.ranks import run_ranks

CPU, F32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
TOKENS = torch.randint(0, 331, (19,), generator=torch.Generator().manual_seed(1))


def build(
    directory: Path, handler: CommunicationHandler, *, on_demand: bool, dtype: torch.dtype = F32
) -> Decoder:
    return build_model(read_model_config(directory), handler, dtype, CPU, on_demand=on_demand)


def load(directory: Path, rank: int, world: int, *, on_demand: bool, parallel: bool) -> dict[str, Tensor]:
    """One rank's parameters, with NaN where no memory is left to chance."""
    model = build(directory, RebindableHandler(rank, world), on_demand=on_demand)
    if not on_demand:
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
    loader_of(directory, rank, world, parallel=parallel).load(model)
    return dict(model.state_dict())


def loader_of(
    directory: Path, rank: int, world: int, *, parallel: bool = False
) -> DistributedCheckpointLoader:
    return DistributedCheckpointLoader(
        open_checkpoint(directory), read_model_config(directory), rank, world, F32, CPU, chunk_bytes=4096,
        parallel=parallel,
    )  # fmt: skip


def awake_bytes(model: Decoder) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("rank", [0, 7])
def test_the_bits_are_the_same_and_so_is_the_padding(
    checkpoints: Checkpoints, rank: int, *, parallel: bool
) -> None:
    """Of 5 tokens in parts of 1 the last rank has none, and its part of the gates is short."""
    directory = checkpoints("llama", vocab_size=5)
    expected = load(directory, rank, 8, on_demand=False, parallel=False)
    got = load(directory, rank, 8, on_demand=True, parallel=parallel)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_a_tied_head_and_a_stranger_are_told_apart(checkpoints: Checkpoints) -> None:
    directory = checkpoints("llama", tie_word_embeddings=True)
    model = build(directory, SingleHandler(), on_demand=True)
    model.register_parameter("again", model.embedding.weight)
    loader_of(directory, 0, 1).load(model)
    model = build(directory, SingleHandler(), on_demand=True)
    model.register_parameter("extra", torch.nn.Parameter(torch.empty(3)))
    put_off(model)
    with pytest.raises(ModelError, match="a parameter extra that its configuration does not ask for"):
        loader_of(directory, 0, 1).load(model)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_model_in_8_bits_is_never_all_there_in_16(checkpoints: Checkpoints, *, parallel: bool) -> None:
    directory = checkpoints("llama", num_hidden_layers=12)
    whole = awake_bytes(build(directory, SingleHandler(), on_demand=False))
    model = build(directory, SingleHandler(), on_demand=True)
    assert awake_bytes(model) == 0
    seen: list[int] = []

    def pack(name: str) -> None:
        seen.append(awake_bytes(model))
        model.pack_module(name, quantization=FP8)

    loader_of(directory, 0, 1, parallel=parallel).load(model, None, pack)
    assert len(seen) == 15
    # The embedding stays; of the rest no more than is read ahead.
    assert max(seen) < 0.7 * whole


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_8_bits_takes_the_bytes_that_were_planned(
    checkpoints: Checkpoints, family: str, *, tied: bool
) -> None:
    directory = checkpoints(family, tie_word_embeddings=tied)
    config = read_model_config(directory)
    for world in (1, 2):
        model = build(directory, RebindableHandler(world - 1, world), on_demand=True, dtype=BF16)
        loader_of(directory, world - 1, world).load(
            model, None, functools.partial(model.pack_module, quantization=FP8)
        )
        planned = weight_bytes_per_rank(config, world, "bfloat16", packed=True, quantization=FP8)
        assert model.weights_bytes == planned


def test_what_comes_from_a_peer_gets_its_memory_on_the_way(checkpoints: Checkpoints) -> None:
    directory = checkpoints("qwen3", dtype="bfloat16")
    config = read_model_config(directory)

    def on_rank(handler: CommunicationHandler) -> Tensor:
        model = build(directory, handler, on_demand=True, dtype=BF16)
        index = open_checkpoint(directory)
        if handler.rank == 0:
            loader_of(directory, 0, 2).load(
                model, None, lambda name: model.pack_module(name, quantization=FP8)
            )
        DistributedParameterInitializer(handler, config, BF16, CPU).initialize(
            None if handler.rank == 0 else model,
            {1: 0},
            index if handler.rank == 0 else None,
            None,
            lambda name: model.pack_module(name, quantization=FP8),
        )
        with torch.inference_mode():
            hidden = model(TOKENS, torch.arange(len(TOKENS)), dense_causal_attend([len(TOKENS)]))
            return model.logits(hidden)

    def from_files(handler: CommunicationHandler) -> Tensor:
        model = build(directory, handler, on_demand=False, dtype=BF16)
        loader_of(directory, handler.rank, 2).load(
            model, None, lambda name: model.pack_module(name, quantization=FP8)
        )
        with torch.inference_mode():
            hidden = model(TOKENS, torch.arange(len(TOKENS)), dense_causal_attend([len(TOKENS)]))
            return model.logits(hidden)

    received, expected = run_ranks(2, on_rank), run_ranks(2, from_files)
    assert bool(expected[0].isfinite().all())
    assert all(torch.equal(logits, expected[0]) for logits in received)


def test_memory_comes_once_and_only_where_it_was_put_off() -> None:
    module = torch.nn.Linear(3, 2)
    assert not is_put_off(module.weight)
    assert not provide(module.weight)
    put_off(module)
    assert is_put_off(module.weight)
    assert is_put_off(module.bias)
    assert [provide(module.weight), provide(module.weight)] == [True, False]
    assert module.weight.untyped_storage().nbytes() == 4 * 6
    assert not is_put_off(torch.empty(0))

"""Reading by several threads gives the bits of reading from the mapping, and the same errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ryzanstein.model_plan import ModelError, open_checkpoint, read_model_config
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.checkpoint.parallel_reads import ParallelReads, largest_span
from ryzanstein_shard_worker.communication import SingleHandler
from ryzanstein_shard_worker.models import build_model
from tests.checkpoints import Checkpoints

CPU = torch.device("cpu")


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


def loader(
    directory: Path, rank: int, world: int, dtype: torch.dtype, *, parallel: bool
) -> DistributedCheckpointLoader:
    return DistributedCheckpointLoader(
        open_checkpoint(directory), read_model_config(directory), rank, world, dtype, CPU, chunk_bytes=4096,
        parallel=parallel,
    )  # fmt: skip


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_rank_gets_the_same_bits(
    checkpoints: Checkpoints, rank: int, world: int, dtype: torch.dtype
) -> None:
    directory = checkpoints("qwen3", dtype="bfloat16")
    results = []
    for parallel in (False, True):
        one = loader(directory, rank, world, dtype, parallel=parallel)
        tensors = {name: tensor.fill_(torch.nan) for name, tensor in one.allocate().items()}
        fractions: list[float] = []
        one.fill(tensors, fractions.append)
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        results.append(tensors)
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


def test_modules_are_announced_when_they_are_complete(checkpoints: Checkpoints) -> None:
    directory = checkpoints("llama")
    one = loader(directory, 0, 1, torch.float32, parallel=True)
    expected = one.allocate()
    loader(directory, 0, 1, torch.float32, parallel=False).fill(expected)
    tensors = {name: tensor.fill_(torch.nan) for name, tensor in one.allocate().items()}

    def complete(module: str) -> None:
        for name, tensor in tensors.items():
            if name.startswith(f"{module}."):
                assert torch.equal(tensor, expected[name]), name

    one.fill(tensors, None, complete)


def test_a_model_with_gradients_is_filled_from_any_thread(checkpoints: Checkpoints) -> None:
    directory = checkpoints("llama")
    config = read_model_config(directory)
    models = [build_model(config, SingleHandler(), torch.float32, CPU) for _ in range(2)]
    for model, parallel in zip(models, (False, True), strict=True):
        loader(directory, 0, 1, torch.float32, parallel=parallel).load(model)
    for expected, got in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(got, expected)


def test_a_file_that_changed_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for path in checkpoints("llama").iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    one = loader(directory, 0, 1, torch.float32, parallel=True)
    file = directory / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ModelError, match=r"model\.safetensors: changed after its header was read"):
        one.fill(one.allocate())


def test_an_error_of_the_caller_ends_all_threads_and_closes_the_files(checkpoints: Checkpoints) -> None:
    one = loader(checkpoints("llama"), 0, 1, torch.float32, parallel=True)
    before = open_files()

    def stop(fraction: float) -> None:
        raise InterruptedError("another shard is wanted now")

    with pytest.raises(InterruptedError):
        one.fill(one.allocate(), stop)
    assert open_files() <= before


def test_buffers_hold_the_largest_read_in_either_form() -> None:
    assert largest_span([], 4) == 1
    assert ParallelReads([], CPU, buffer_bytes=1, threads=3)._threads == 3

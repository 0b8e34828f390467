"""The benchmarks of collectives and of loading between processes: every operation, and ranks that don't answer."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ryzanstein.program import ProgramError
from ryzanstein_shard_worker.bench import loading
from ryzanstein_shard_worker.bench.rank_processes import Place, RankProcesses
from ryzanstein_shard_worker.communication.benchmark import OPERATIONS, NCCLCommunicationBenchmark
from tests.cluster.harness import BUNDLED_MODEL

from .ranks import needs_native_library


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    with RankProcesses(2) as ranks:
        yield ranks


@pytest.mark.parametrize("backend", [pytest.param("shared_memory", marks=needs_native_library), "gloo"])
def test_every_operation_is_measured_between_two_processes(ranks: RankProcesses, backend: str) -> None:
    benchmark = NCCLCommunicationBenchmark(ranks, backend, budget_s=0.005)
    assert benchmark.operations() == list(OPERATIONS)
    for operation in OPERATIONS:
        result = benchmark.measure(operation, 10_000)
        assert (result.backend, result.operation, result.ranks) == (backend, operation, 2)
        assert result.latency_s.count >= 5
        assert 0 < result.latency_s.p50 <= result.latency_s.p99
        if operation == "barrier":
            assert result.algorithm_bytes_per_s is None
        else:
            assert result.algorithm_bytes_per_s is not None
            assert result.algorithm_bytes_per_s == pytest.approx(result.size_bytes / result.latency_s.p50)
            factor = 0.5 if operation in ("all_gather", "reduce_scatter") else 1.0
            assert result.bus_bytes_per_s == pytest.approx(factor * result.algorithm_bytes_per_s)
    benchmark.close()


def test_ranks_load_their_shards_cold_and_warm(ranks: RankProcesses, tmp_path: Path) -> None:
    model = Path(shutil.copytree(BUNDLED_MODEL, tmp_path / "model"))  # which nobody else has mapped
    work = loading.Work(model, "cpu", "float32", "none", 256)
    found = list(loading.measure(ranks, work, loads=1))
    assert [{(r.start, r.rank) for r in results} for results in found] == [
        {("cold", 0), ("cold", 1)},
        {("warm", 0), ("warm", 1)},
    ]
    for result in (result for results in found for result in results):
        assert set(result.phases_s) == set(loading.PHASES)
        assert result.seconds == pytest.approx(sum(result.phases_s.values()))
        assert 0 < result.file_bytes <= sum(file.stat().st_size for file in model.glob("*.safetensors"))
        assert result.weights_bytes > 0
    (first, *_), _ = found
    assert first.cached_share is None or first.cached_share < 0.5  # what the kernel was asked to forget


def test_a_rank_that_fails_ends_or_does_not_answer_is_named() -> None:
    with RankProcesses(2, pinned=True) as ranks:
        with pytest.raises(ProgramError, match="rank 1 failed: ValueError: not mine"):
            ranks.call(fail_on, 1)
        assert ranks.call(rank_of) == [0, 1]  # the others answered, and nothing is left over
        with pytest.raises(ProgramError, match=r"rank \d did not answer within 0.05 s"):
            ranks.call(stand_still, timeout_s=0.05)
    with (
        pytest.raises(ProgramError, match="the process of rank 0 ended with code 7"),
        RankProcesses(2) as ranks,
    ):
        ranks.call(end)


def fail_on(place: Place, rank: int) -> None:
    if place.rank == rank:
        raise ValueError("not mine")


def rank_of(place: Place) -> int:
    return place.rank


def stand_still(place: Place) -> None:
    time.sleep(0.5)


def end(place: Place) -> None:
    if place.rank == 0:
        os._exit(7)

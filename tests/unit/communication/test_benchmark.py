"""What the benchmark of collectives reckons with; the measuring itself: tests/distributed."""

from __future__ import annotations

import pytest

from ryzanstein_shard_worker.communication.benchmark import (
    OPERATIONS,
    bus_factor,
    elements_of,
    moved_bytes,
    rounds_of,
    sizes,
    why_not,
)

from ...distributed.ranks import needs_native_library


@pytest.mark.parametrize(
    ("operation", "factor"),
    [
        ("all_reduce", 2 * 3 / 4),
        ("all_gather", 3 / 4),
        ("reduce_scatter", 3 / 4),
        ("broadcast", 1.0),
        ("send_receive", 1.0),
    ],
)
def test_the_bus_bandwidth_is_that_of_nccl_tests(operation: str, factor: float) -> None:
    assert bus_factor(operation, 4) == factor


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_less_is_moved_than_was_asked_for_and_hardly_more(operation: str, world: int) -> None:
    moved = moved_bytes(operation, elements_of(operation, 1000, world), world)
    assert moved == 0 if operation == "barrier" else 1000 <= moved < 1000 + 4 * world


def test_sizes_go_from_the_smallest_to_the_largest() -> None:
    assert list(sizes(1024, 64 << 20, 4)) == [1024 * 4**power for power in range(9)]
    assert list(sizes(1000, 999, 2)) == []


def test_short_operations_are_repeated_often_and_long_ones_a_few_times() -> None:
    assert rounds_of(0.1, 1e-3) == 100
    assert rounds_of(0.1, 10.0) == 5
    assert rounds_of(0.1, 0.0) == 1000


def test_what_this_machine_lacks_is_said() -> None:
    assert why_not("nccl", 2, "cpu") == "it is for GPUs"
    assert "two ranks" in why_not("gloo", 1, "cpu")
    assert why_not("gloo", 2, "cpu") == ""
    assert why_not("shared_memory", 2, "cuda") == "it is for CPUs"
    assert why_not("shared_memory", 1000, "cpu").startswith("it holds")


@needs_native_library
def test_ranks_of_one_machine_can_share_memory() -> None:
    assert why_not("shared_memory", 2, "cpu") == ""

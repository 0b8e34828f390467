"""What this machine has for the workers that `serve` starts."""

from __future__ import annotations

import pytest

from ryzanstein.processors import Processor
from ryzanstein_coordinator.local_devices import (
    DeviceCountError,
    local_shares,
    pinned_processors,
    visible_memories,
)

GPUS = [("GPU-aa11", 80), ("GPU-ab22", 40), ("GPU-cc33", 24)]


@pytest.mark.parametrize(
    ("visible", "memories"),
    [
        (None, [80, 40, 24]),
        ("", []),
        ("2,0", [24, 80]),
        ("GPU-cc,1", [24, 40]),
        ("GPU-a", []),  # which of the two?
        ("0,9,1", [80]),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_workers_see_the_gpus_that_the_environment_names(visible: str | None, memories: list[int]) -> None:
    assert visible_memories(GPUS, visible) == memories


def test_hidden_gpus_count_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(DeviceCountError, match="2 workers need a GPU each and this machine has 0"):
        local_shares("cuda", 2)
    shares = local_shares("auto", 2)
    assert [(share.kind, share.sharing) for share in shares] == [("cpu", 2)] * 2


ONE_NODE = tuple(Processor(number, 0, (0, number)) for number in range(4))
TWO_NODES = tuple(Processor(number, number // 2, (number // 2, number)) for number in range(4))


@pytest.mark.parametrize(
    ("processors", "workers", "pinning", "lists"),
    [
        (TWO_NODES, 2, "auto", ("0-1", "2-3")),
        (TWO_NODES, 2, "none", ()),
        (TWO_NODES, 3, "auto", ()),
        (ONE_NODE, 2, "auto", ()),
        (ONE_NODE, 2, "cores", ("0-1", "2-3")),
        (ONE_NODE, 1, "cores", ("0-1",)),
    ],
    ids=[
        "a node each",
        "told not to",
        "no room for the spare",
        "one node is left to the system",
        "told to",
        "one worker",
    ],
)
def test_workers_get_processors_of_their_own_where_that_is_worth_it(
    processors: tuple[Processor, ...], workers: int, pinning: str, lists: tuple[str, ...]
) -> None:
    assert pinned_processors(processors, workers, 2, pinning) == lists

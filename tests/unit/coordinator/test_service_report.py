"""The line that `systemctl status` shows."""

from __future__ import annotations

import pytest

from ryzanstein.v1.operations_pb2 import ClusterSnapshot, GroupStatus, RequestCounts, WorkerStatus
from ryzanstein_coordinator.service_report import describe, turns


def snapshot(
    *groups: GroupStatus, workers: list[WorkerStatus] | None = None, waiting: int = 0
) -> ClusterSnapshot:
    counts = RequestCounts(running=3, waiting=waiting)
    return ClusterSnapshot(groups=groups, workers=workers or [], requests=counts)


@pytest.mark.parametrize(
    ("group", "line"),
    [
        (
            GroupStatus(state="waiting", reason="1 of 2 workers are ready"),
            "waiting: 1 of 2 workers are ready",
        ),
        (GroupStatus(state="forming", epoch=3), "forming epoch 3"),
        (GroupStatus(state="serving", epoch=3, reason="epoch 3 stands"), "serving epoch 3"),
        (GroupStatus(state="recovering", reason="b (rank 1) ended"), "recovering: b (rank 1) ended"),
        (GroupStatus(state="degraded", reason="1 of 2 ranks"), "degraded: 1 of 2 ranks"),
        (GroupStatus(state="waiting"), "waiting"),
        (GroupStatus(state="draining", epoch=3), "draining: 5 requests left"),
    ],
)
def test_every_state_has_its_line(group: GroupStatus, line: str) -> None:
    assert describe(snapshot(group, waiting=2)) == line


def test_loading_tells_how_far_the_ranks_of_the_group_are() -> None:
    workers = [
        WorkerStatus(id="a", group="g0", load_progress=0.36),
        WorkerStatus(id="b", group="g0", load_progress=0.5),
        WorkerStatus(id="c", load_progress=1.0),
    ]
    assert describe(snapshot(GroupStatus(id="g0", state="loading", epoch=1), workers=workers)) == (
        "loading 43 %, epoch 1"
    )


def test_several_groups_are_told_apart() -> None:
    line = describe(
        snapshot(
            GroupStatus(id="g0", state="serving", epoch=3),
            GroupStatus(id="g1", state="waiting", reason="no GPU"),
        )
    )
    assert line == "g0: serving epoch 3; g1: waiting: no GPU"


def test_a_control_loop_that_does_not_turn_is_not_alive() -> None:
    assert turns(now_s=100.0, last_tick_s=99.95, watchdog_s=10.0)
    assert not turns(now_s=100.0, last_tick_s=94.9, watchdog_s=10.0)

"""What the log says of a fault: one line, when all is known."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from structlog.testing import capture_logs

from ryzanstein_coordinator.change_log import log_changes
from ryzanstein_coordinator.group_record import Cause, CulpritRecord, GroupRecord, RankReport, Recovery
from ryzanstein_coordinator.state import ClusterState

RECOVERY = Recovery(
    epoch=8,
    cause=Cause.COLLECTIVE,
    culprit=CulpritRecord(worker_id="w1", rank=1, host="alpha", device="cuda:1", pid=77),
    reason="w1 (rank 1) reports: NaN",
    seen_at_s=100.0,
    detected_at_s=100.25,
    broken_epoch=7,
    ranks=(RankReport(0, "w0", "all_reduce", 31), RankReport(1, "w1")),
)
REFORMED = replace(RECOVERY, fenced_at_s=100.5, reformed_at_s=101.0)
COMPLETE = replace(REFORMED, told=True, requests_resumed=3, first_token_at_s=101.5, closed=True)


def lines(*recoveries: Recovery | None) -> list[dict[str, Any]]:
    """The lines about faults, while the group's recovery changes as given."""
    states = [ClusterState(groups=(GroupRecord(group_id="g0", size=2, recovery=r),)) for r in recoveries]
    with capture_logs() as logs:
        for before, after in itertools.pairwise(states):
            log_changes(before, after)
    return [dict(entry) for entry in logs if entry["event"] == "recovery"]


def test_a_recovery_is_told_in_one_line_with_all_that_is_known() -> None:
    waiting = replace(REFORMED, told=True, requests_resumed=3)
    (line,) = lines(None, RECOVERY, REFORMED, waiting, COMPLETE, replace(COMPLETE, reason="again"))
    assert line == {
        "event": "recovery",
        "log_level": "warning",
        "group": "g0",
        "epoch": 8,
        "broken_epoch": 7,
        "cause": "collective",
        "culprit": "w1",
        "rank": 1,
        "host": "alpha",
        "device": "cuda:1",
        "pid": 77,
        "detected_s": 0.25,
        "fenced_s": 0.5,
        "reformed_s": 1.0,
        "first_token_s": 1.5,
        "requests_resumed": 3,
        "ranks": {0: "all_reduce #31", 1: "none #0"},
        "reason": "w1 (rank 1) reports: NaN",
    }


def test_where_nothing_was_to_be_resumed_no_token_is_waited_for() -> None:
    (line,) = lines(None, RECOVERY, REFORMED, replace(REFORMED, told=True, closed=True))
    assert (line["requests_resumed"], line["first_token_s"]) == (0, None)


def test_a_first_token_that_comes_after_its_time_is_not_told_again() -> None:
    late = replace(REFORMED, told=True, requests_resumed=3, closed=True)
    (line,) = lines(None, RECOVERY, late, replace(late, first_token_at_s=109.0))
    assert line["first_token_s"] is None
    second = replace(RECOVERY, epoch=9, detected_at_s=102.0, seen_at_s=102.0)
    assert [line["epoch"] for line in lines(None, late, second)] == [8]


def test_a_recovery_that_was_cut_short_by_another_fault_is_told_all_the_same() -> None:
    second = replace(RECOVERY, epoch=9, detected_at_s=102.0, seen_at_s=102.0)
    told = lines(None, RECOVERY, replace(REFORMED, told=True, requests_resumed=3), second)
    assert [(line["epoch"], line["first_token_s"]) for line in told] == [(8, None)]

"""What is done about a fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein_coordinator.failure_recovery import TREATMENTS, FailureRecoveryManager
from ryzanstein_coordinator.group_record import Cause, GroupRecord, Member, Phase, RankReport, Recovery
from ryzanstein_coordinator.health_monitor import Fault
from ryzanstein_coordinator.worker_record import FaultReport, Telemetry

from .cluster_builders import configuration, worker

CONFIG = configuration(backoff_s=0.2, backoff_limit_s=5.0, stable_after_s=10.0, replacement_wait_s=30.0)
MANAGER = FailureRecoveryManager(CONFIG)
MEMBERS = (Member(0, "w0", "w0-1"), Member(1, "w1", "w1-1"))
GROUP = GroupRecord(
    group_id="g0", size=2, phase=Phase.SERVING, epoch=7, members=MEMBERS, serving_since_s=99.0
)


HEARD = {
    "w0": Telemetry(heard_at_s=99.9, epoch=7, collective="all_reduce", collective_sequence=31),
    "w1": Telemetry(heard_at_s=99.8, epoch=6, collective="barrier", collective_sequence=2),
}


def a_fault(cause: Cause, culprit: str | None = "w1", told_by: str | None = None) -> Fault:
    return Fault(cause=cause, culprit=culprit, reason="it broke", seen_at_s=99.5, told_by=told_by)


def opened(cause: Cause, told_by: str | None = None) -> Recovery:
    """Of a fault for which w1 is to blame."""
    return MANAGER.open(100.0, GROUP, a_fault(cause, told_by=told_by), worker("w1"), HEARD)


def test_every_cause_has_its_treatment() -> None:
    assert set(TREATMENTS) == set(Cause)


@pytest.mark.parametrize("cause", [Cause.COLLECTIVE, Cause.STUCK, Cause.ENGINE])
def test_a_culprit_that_lives_gets_a_strike(cause: Cause) -> None:
    treated = MANAGER.treat(a_fault(cause), worker("w1", strikes=1))
    assert treated is not None
    assert (treated.strikes, treated.failed_reason) == (2, "")


def test_a_worker_whose_memory_ran_out_keeps_its_place() -> None:
    """What it was asked for was too large; its weights are where they were."""
    assert MANAGER.treat(a_fault(Cause.MEMORY), worker("w1")) == worker("w1")


def test_a_broken_device_takes_its_worker_out_of_service() -> None:
    treated = MANAGER.treat(a_fault(Cause.DEVICE), worker("w1"))
    assert treated is not None
    assert treated.failed_reason == "it broke"


def test_a_fault_without_a_culprit_punishes_nobody() -> None:
    assert MANAGER.treat(a_fault(Cause.COLLECTIVE, None), None) is None


def test_a_recovery_names_the_culprit_as_it_was() -> None:
    recovery = opened(Cause.LEASE)
    assert recovery.culprit is not None
    assert (recovery.culprit.worker_id, recovery.culprit.rank, recovery.culprit.pid) == ("w1", 1, 100)
    assert (recovery.seen_at_s, recovery.detected_at_s) == (99.5, 100.0)
    assert recovery.is_open


def left(epoch: int, peer_rank: int | None, sequence: int, kind: str = "collective") -> Telemetry:
    """What a worker tells that has left an epoch for a fault."""
    fault = FaultReport(
        kind=kind,
        message="it says so",
        epoch=epoch,
        peer_rank=peer_rank,
        collective="all_gather",
        collective_sequence=sequence,
    )
    return Telemetry(heard_at_s=100.1, fault=fault)


def test_a_recovery_tells_where_every_rank_stood_as_far_as_it_is_known() -> None:
    recovery = opened(Cause.COLLECTIVE)
    assert recovery.broken_epoch == 7
    assert recovery.ranks == (RankReport(0, "w0", "all_reduce", 31), RankReport(1, "w1"))
    later = MANAGER.hear(recovery, worker("w1"), left(7, None, 33))
    assert later.ranks[1] == RankReport(1, "w1", "all_gather", 33)
    assert MANAGER.hear(later, worker("w1"), left(6, 1, 99)) is later, "of an epoch before"
    assert MANAGER.hear(later, worker("w9"), left(7, 1, 99)) is later, "of no member"


def test_what_a_rank_says_against_itself_is_believed_and_what_it_says_of_others_afterwards_is_not() -> None:
    group = MANAGER.open(100.0, GROUP, a_fault(Cause.COLLECTIVE, None), None, HEARD)
    assert MANAGER.hear(group, worker("w0"), left(7, 1, 31)).culprit is None
    blamed = MANAGER.hear(group, worker("w0"), left(7, 0, 31))
    assert blamed.told_by_culprit
    assert blamed.culprit is not None
    assert (blamed.culprit.worker_id, blamed.reason) == ("w0", "w0 (rank 0) reports: it says so")
    dead = opened(Cause.PROCESS)
    assert MANAGER.hear(dead, worker("w0"), left(7, 0, 31)).culprit == dead.culprit


def test_a_death_explains_the_collective_that_failed_before() -> None:
    blamed = MANAGER.blame(opened(Cause.COLLECTIVE), Cause.PROCESS, worker("w0"), "w0 ended")
    assert blamed.culprit is not None
    assert (blamed.cause, blamed.culprit.worker_id, blamed.culprit.rank) == (Cause.PROCESS, "w0", 0)
    assert blamed.seen_at_s == 99.5


TOLD = [Cause.STUCK, Cause.ENGINE, Cause.COLLECTIVE, Cause.MEMORY]


@pytest.mark.parametrize("cause", TOLD)
def test_a_process_that_told_of_its_fault_and_then_ends_had_that_fault(cause: Cause) -> None:
    told = opened(cause, told_by="w1")
    assert MANAGER.blame(told, Cause.PROCESS, worker("w1"), "w1 ended", HEARD["w1"]) is told
    another = MANAGER.blame(told, Cause.PROCESS, worker("w0"), "w0 ended", HEARD["w0"])
    assert another.culprit is not None
    assert (another.cause, another.culprit.worker_id) == (Cause.PROCESS, "w0")


def test_whom_a_survivor_blamed_had_died_unless_it_was_heard_of_long_afterwards() -> None:
    seen = opened(Cause.COLLECTIVE, told_by="w0")
    for heard_at_s, cause in ((99.9, Cause.PROCESS), (100.1, Cause.PROCESS), (101.0, Cause.COLLECTIVE)):
        heard = replace(HEARD["w1"], heard_at_s=heard_at_s)
        assert MANAGER.blame(seen, Cause.PROCESS, worker("w1"), "w1 ended", heard).cause is cause
    of_another_host = worker("w1", pid=101)
    heard = replace(HEARD["w1"], heard_at_s=101.0)
    assert MANAGER.blame(seen, Cause.PROCESS, of_another_host, "", heard).cause is Cause.PROCESS


@pytest.mark.parametrize(("kind", "cause"), [("engine", Cause.ENGINE), ("memory", Cause.MEMORY)])
def test_the_culprit_knows_better_than_its_peers_what_failed(kind: str, cause: Cause) -> None:
    """They saw a collective fail, and were heard first."""
    seen = opened(Cause.COLLECTIVE, told_by="w0")
    told = MANAGER.hear(seen, worker("w1"), left(7, None, 33, kind))
    assert (told.cause, told.culprit, told.reason) == (cause, seen.culprit, "w1 (rank 1) reports: it says so")
    assert MANAGER.blame(told, Cause.PROCESS, worker("w1"), "w1 ended") is told
    innocent = MANAGER.hear(seen, worker("w0"), left(7, None, 33, kind))
    assert (innocent.cause, innocent.culprit) == (Cause.COLLECTIVE, seen.culprit)


def test_a_second_death_does_not_take_the_blame_of_the_first() -> None:
    first = opened(Cause.PROCESS)
    assert MANAGER.blame(first, Cause.PROCESS, worker("w0"), "w0 ended") is first


def test_a_worker_outside_the_broken_epoch_is_not_blamed() -> None:
    first = opened(Cause.COLLECTIVE)
    assert MANAGER.blame(first, Cause.PROCESS, worker("w9"), "w9 ended") is first
    assert MANAGER.blame(first, Cause.PROCESS, worker("w0", incarnation="w0-2"), "") is first


@settings(deadline=None)
@given(failures=st.integers(0, 10_000))
def test_the_pause_grows_with_failures_and_has_a_limit(failures: int) -> None:
    group = replace(GROUP, failures=failures)
    retry = MANAGER.retry(100.0, group, may_repeat=True)
    assert retry.failures == failures + 1
    pause_s = retry.not_before_s - 100.0
    assert 0.0 <= pause_s <= CONFIG.backoff_limit_s
    assert (pause_s == 0.0) == (failures == 0)


def test_the_pauses_double() -> None:
    pauses = [
        MANAGER.retry(0.0, replace(GROUP, failures=n, serving_since_s=0.0), may_repeat=True).not_before_s
        for n in range(7)
    ]
    assert pauses == pytest.approx([0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])


def test_a_death_is_answered_at_once_whatever_came_before() -> None:
    retry = MANAGER.retry(100.0, replace(GROUP, failures=5), may_repeat=False)
    assert (retry.failures, retry.not_before_s) == (5, 100.0)


def test_a_stable_time_of_serving_wipes_the_slate() -> None:
    stable = replace(GROUP, failures=5, serving_since_s=80.0)
    assert MANAGER.retry(100.0, stable, may_repeat=True).not_before_s == 100.0


def test_a_group_waits_for_a_replacement_and_says_how_long() -> None:
    group = replace(GROUP, phase=Phase.VACANT, vacant_since_s=100.0, recovery=opened(Cause.PROCESS))
    early, late = MANAGER.missing(110.0, group, "1 of 2"), MANAGER.missing(131.0, group, "1 of 2")
    assert (early.overdue, early.reason) == (False, "1 of 2; waits up to 30 s")
    assert (late.overdue, late.reason) == (True, "1 of 2; none came within 30 s")


def test_a_group_that_never_served_just_waits() -> None:
    group = GroupRecord(group_id="g0", size=2, vacant_since_s=0.0)
    assert MANAGER.missing(1000.0, group, "1 of 2").reason == "1 of 2"

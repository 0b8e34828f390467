"""The history of epochs: one record each, whatever became of it."""

from __future__ import annotations

import itertools
from dataclasses import replace

from ryzanstein_coordinator.epoch_history import EpochHistory, EpochRecord, next_history
from ryzanstein_coordinator.group_record import Cause, CulpritRecord, GroupRecord, Member, Phase, Recovery
from ryzanstein_coordinator.recovery_status import epoch_status
from ryzanstein_coordinator.state import ClusterState

VACANT = GroupRecord(group_id="g0", size=2)
MEMBERS = (Member(0, "w0", "w0-1"), Member(1, "w1", "w1-1"))
FORMING = replace(VACANT, epoch=1, phase=Phase.FORMING, members=MEMBERS, reason="2 of 2 workers are ready")
SERVING = replace(FORMING, phase=Phase.SERVING)
DIED = Recovery(
    epoch=1,
    cause=Cause.PROCESS,
    culprit=CulpritRecord(worker_id="w1", rank=1, host="alpha", device="cpu", pid=7),
    reason="w1 (rank 1) ended",
    seen_at_s=50.0,
    detected_at_s=50.0,
    broken_epoch=1,
)
BROKEN = replace(SERVING, phase=Phase.FENCING, members=(), recovery=DIED, reason="w1 (rank 1) ended")
NEXT = replace(BROKEN, epoch=2, recovery=replace(DIED, epoch=2, fenced_at_s=50.1))
AGAIN = replace(
    NEXT, phase=Phase.SERVING, members=MEMBERS, recovery=replace(NEXT.recovery or DIED, reformed_at_s=50.5)
)


def followed(*groups: GroupRecord) -> tuple[EpochRecord, ...]:
    """The history after these states, one a second from 100 on."""
    history: tuple[EpochRecord, ...] = ()
    states = [ClusterState(groups=(group,)) for group in groups]
    for second, (before, after) in enumerate(itertools.pairwise(states), start=100):
        history = next_history(history, before, after, float(second))
    return history


def test_the_first_epoch_has_no_cause() -> None:
    (record,) = followed(VACANT, FORMING, SERVING)
    assert (record.epoch, record.members, record.recovery) == (1, ("w0", "w1"), None)
    assert (record.began_unix_s, record.served_unix_s, record.ended_unix_s) == (100.0, 101.0, None)


def test_a_fault_ends_one_epoch_and_is_the_reason_of_the_next() -> None:
    second, first = followed(VACANT, SERVING, BROKEN, NEXT, AGAIN)
    assert (first.ended_unix_s, first.recovery) == (101.0, None)
    assert second.recovery is not None
    assert (second.recovery.culprit, second.recovery.reformed_at_s) == (DIED.culprit, 50.5)
    assert (second.began_unix_s, second.served_unix_s) == (102.0, 103.0)
    status = epoch_status(second)
    assert (status.recovery.cause, status.recovery.culprit.worker_id) == ("process", "w1")
    assert status.recovery.reformed_s == 0.5
    assert not status.HasField("ended_unix_s")


def test_what_becomes_known_later_of_a_recovery_is_added() -> None:
    known = replace(AGAIN.recovery or DIED, first_token_at_s=50.6, requests_resumed=4)
    newest, _ = followed(VACANT, SERVING, BROKEN, NEXT, AGAIN, replace(AGAIN, recovery=known))
    assert newest.recovery == known


def test_an_epoch_that_never_stood_stays_in_the_history() -> None:
    in_vain = replace(NEXT, epoch=3)
    third, second, _ = followed(VACANT, SERVING, BROKEN, NEXT, in_vain)
    assert (second.served_unix_s, second.ended_unix_s) == (None, 103.0)
    assert third.ended_unix_s is None


def test_the_history_is_bounded() -> None:
    history = followed(*(replace(SERVING, epoch=epoch) for epoch in range(200)))
    assert len(history) == 32
    assert history[0].epoch == 199


def test_groups_have_their_own_epochs_in_one_history() -> None:
    other = replace(VACANT, group_id="g1")
    before = ClusterState(groups=(VACANT, other))
    both = ClusterState(groups=(SERVING, replace(other, epoch=2, phase=Phase.SERVING)))
    history = EpochHistory(wall_clock=lambda: 7.0)
    history.changed(before, both)
    assert {(record.group_id, record.epoch) for record in history.records} == {("g0", 1), ("g1", 2)}
    assert all(record.ended_unix_s is None for record in history.records)

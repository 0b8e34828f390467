"""What became of the last epochs: when each began and served, who was in it, and what ended the one before. Pure,
but for the object that holds the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from .group_record import GroupRecord, Phase, Recovery
from .state import ClusterState

#: A person looks at the last few; a group that breaks again and again must not fill the memory.
HISTORY_LIMIT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of one group. Moments are Unix seconds: people compare them with their own clocks."""

    group_id: str
    epoch: int
    size: int
    began_unix_s: float
    #: Why it was begun.
    reason: str
    #: Worker ids by rank; empty until the ranks are given.
    members: tuple[str, ...] = ()
    #: When it stood; None: it never did.
    served_unix_s: float | None = None
    #: When it was left; None: it stands, or is being formed.
    ended_unix_s: float | None = None
    #: The fault or the planned change that it came of; None: it was the coordinator's first.
    recovery: Recovery | None = None


def next_history(
    history: tuple[EpochRecord, ...],
    before: ClusterState,
    after: ClusterState,
    unix_s: float,
    limit: int = HISTORY_LIMIT,
) -> tuple[EpochRecord, ...]:
    """The history, newest first, once `before` has become `after`."""
    if before.groups is after.groups:
        return history
    for old, new in zip(before.groups, after.groups, strict=True):
        if old is not new:
            history = _follow(history, old, new, unix_s)
    return history[:limit]


def _follow(
    history: tuple[EpochRecord, ...], old: GroupRecord, new: GroupRecord, unix_s: float
) -> tuple[EpochRecord, ...]:
    known = next((record for record in history if record.group_id == new.group_id), None)
    if known is not None and known.ended_unix_s is None and _is_over(known, old, new):
        history = _with(history, known, replace(known, ended_unix_s=unix_s))
    if new.epoch and (known is None or known.epoch != new.epoch):
        began = EpochRecord(
            group_id=new.group_id, epoch=new.epoch, size=new.size, began_unix_s=unix_s, reason=new.reason
        )
        return (_up_to_date(began, new, unix_s), *history)
    return (
        history
        if known is None
        else _with(history, known, _up_to_date(_current(history, known), new, unix_s))
    )


def _is_over(known: EpochRecord, old: GroupRecord, new: GroupRecord) -> bool:
    """The next epoch has a number, or this one is being left while that is still being written down."""
    return known.epoch != new.epoch or (old.phase is Phase.SERVING and new.phase is not Phase.SERVING)


def _up_to_date(record: EpochRecord, group: GroupRecord, unix_s: float) -> EpochRecord:
    if record.ended_unix_s is not None:
        return record
    recovery = group.recovery
    # Until the next epoch has its number a recovery carries that of the broken one.
    if recovery is not None and recovery.epoch == record.epoch and recovery.broken_epoch < record.epoch:
        record = replace(record, recovery=recovery)
    members = tuple(member.worker_id for member in group.members)
    if members:
        record = replace(record, members=members, size=group.size)
    if group.phase is Phase.SERVING and record.served_unix_s is None:
        record = replace(record, served_unix_s=unix_s)
    return record


def _current(history: tuple[EpochRecord, ...], known: EpochRecord) -> EpochRecord:
    return next(
        record for record in history if (record.group_id, record.epoch) == (known.group_id, known.epoch)
    )


def _with(
    history: tuple[EpochRecord, ...], known: EpochRecord, changed: EpochRecord
) -> tuple[EpochRecord, ...]:
    key = known.group_id, known.epoch
    return tuple(changed if (record.group_id, record.epoch) == key else record for record in history)


class EpochHistory:
    """Remembers the last epochs of this coordinator's life. A `control_loop.ClusterObserver`."""

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        """`wall_clock`: Unix seconds."""
        self._wall_clock = wall_clock
        #: Newest first.
        self.records: tuple[EpochRecord, ...] = ()

    def heartbeat(self, before: ClusterState, after: ClusterState, worker_id: str) -> None:
        """Heartbeats change no epoch."""

    def changed(self, before: ClusterState, after: ClusterState) -> None:
        self.records = next_history(self.records, before, after, self._wall_clock())

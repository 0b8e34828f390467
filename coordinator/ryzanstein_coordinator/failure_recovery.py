"""What to do about a fault. Pure: the group's machine (`group_life`) carries it out, dashboards print the
reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .config import OrchestratorConfig
from .group_record import Cause, CulpritRecord, GroupRecord, Recovery
from .health_monitor import Fault
from .rank_reports import reports_at_fault, updated
from .worker_record import Telemetry, WorkerRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What becomes of the worker that is to blame. In every case the others leave the epoch and form the
    next.
    """

    #: Its process is gone.
    lost: bool = False
    #: Its process can't serve any more; it stays visible until it is replaced.
    failed: bool = False
    #: It may serve again, but others are preferred to it.
    strike: bool = False
    #: Forming again at once may well break again, so it counts towards the pause between attempts.
    may_repeat: bool = False


#: Which founding document's failure is which: stale process (process, lease), communication timeout and
#: failed all-reduce (collective, stuck), GPU out of memory (memory), GPU hardware failure (device).
TREATMENTS = {
    Cause.PROCESS: Treatment(lost=True),
    Cause.LEASE: Treatment(lost=True),
    Cause.COLLECTIVE: Treatment(strike=True, may_repeat=True),
    Cause.STUCK: Treatment(strike=True, may_repeat=True),
    Cause.DEVICE: Treatment(failed=True),
    # Its weights are in memory and it did nothing wrong: what it was asked for was too large. That is asked for last
    # the next time, and then not again (`suspicion`), so there is nothing to wait for.
    Cause.MEMORY: Treatment(),
    Cause.ENGINE: Treatment(strike=True, may_repeat=True),
    Cause.STREAM: Treatment(strike=True, may_repeat=True),
    Cause.DRAIN: Treatment(),
    Cause.RESIZE: Treatment(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How many failures in a row, and before which moment nothing is tried again."""

    failures: int
    not_before_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What a group without enough workers does."""

    #: The wait for a replacement is over: the group goes on with fewer ranks, if they can hold the model.
    overdue: bool
    reason: str


class FailureRecoveryManager:
    """Decides; it holds no state of its own."""

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config

    def treat(self, fault: Fault, culprit: WorkerRecord | None) -> WorkerRecord | None:
        """The culprit's record after the fault. Lost ones are not changed here: the caller knows what else
        ends.
        """
        if culprit is None:
            return None
        treatment = TREATMENTS[fault.cause]
        if treatment.failed:
            return replace(culprit, failed_reason=fault.reason)
        if treatment.strike:
            return replace(culprit, strikes=culprit.strikes + 1)
        return culprit

    def open(
        self,
        now_s: float,
        group: GroupRecord,
        fault: Fault,
        culprit: WorkerRecord | None,
        telemetry: Mapping[str, Telemetry | None],
    ) -> Recovery:
        """The record of a recovery that begins now. `telemetry`: what the members told last."""
        return Recovery(
            epoch=group.epoch,
            cause=fault.cause,
            culprit=None if culprit is None else _culprit(culprit, group),
            reason=fault.reason,
            seen_at_s=min(fault.seen_at_s, now_s),
            detected_at_s=now_s,
            told_by_culprit=culprit is not None and fault.told_by == culprit.worker_id,
            counted=TREATMENTS[fault.cause].may_repeat,
            broken_epoch=group.epoch,
            members=group.members,
            ranks=reports_at_fault(group.members, telemetry, group.epoch),
        )

    def hear(self, recovery: Recovery, worker: WorkerRecord, heard: Telemetry) -> Recovery:
        """What a survivor tells when it has left: where it stood, and whether it was its own fault.

        Only what a rank says against itself changes the verdict: one that was told to leave looks to its peers like
        one that failed.
        """
        member = next((m for m in recovery.members if m.incarnation == worker.incarnation), None)
        fault = heard.fault
        if member is None or fault is None or fault.epoch != recovery.broken_epoch:
            return recovery
        ranks = tuple(
            updated(report, heard, recovery.broken_epoch) if report.rank == member.rank else report
            for report in recovery.ranks
        )
        if ranks != recovery.ranks:
            recovery = replace(recovery, ranks=ranks)
        if recovery.cause is not Cause.COLLECTIVE or recovery.told_by_culprit:
            return recovery
        cause = None
        if fault.kind == "collective" and fault.peer_rank == member.rank:
            cause = Cause.COLLECTIVE
        elif _is_culprit(recovery, worker):  # its peers only saw that it failed; it knows why
            cause = {"engine": Cause.ENGINE, "memory": Cause.MEMORY}.get(fault.kind)
        if cause is None:
            return recovery
        reason = f"{worker.worker_id} (rank {member.rank}) reports: {fault.message}"
        culprit = _culprit_at(worker, member.rank)
        return replace(recovery, cause=cause, culprit=culprit, reason=reason, told_by_culprit=True)

    def blame(
        self,
        recovery: Recovery,
        cause: Cause,
        worker: WorkerRecord,
        reason: str,
        heard: Telemetry | None = None,
    ) -> Recovery:
        """Better evidence after the fact: a survivor's report is often ahead of the news that a process died.

        The first death that becomes known while the group is not formed again explains the fault; a later one
        is a second fault. Nor does the end of a process explain what it told of itself, or what it outlived: an
        engine that fails, or that does not leave its group, may end its process.

        Args:
            worker: whose process is gone.
            heard: its last heartbeat.
        """
        member = next((m for m in recovery.members if m.incarnation == worker.incarnation), None)
        if member is None or recovery.cause in (Cause.PROCESS, Cause.LEASE, Cause.DEVICE):
            return recovery
        if _is_culprit(recovery, worker) and (recovery.told_by_culprit or self._outlived(recovery, heard)):
            return recovery
        return replace(
            recovery,
            cause=cause,
            culprit=_culprit_at(worker, member.rank),
            reason=reason,
            told_by_culprit=False,
            counted=False,
        )

    def _outlived(self, recovery: Recovery, heard: Telemetry | None) -> bool:
        """Whether a process was heard of so long after the fault that no heartbeat could have been under way."""
        return heard is not None and heard.heard_at_s - recovery.detected_at_s > self._config.suspect_after_s

    def retry(self, now_s: float, group: GroupRecord, *, may_repeat: bool) -> Retry:
        """The pause before the next attempt: none after the first failure, then doubling, never longer than
        the limit.

        A death is not counted: the next attempt has other members.
        """
        served_s = 0.0 if group.serving_since_s is None else now_s - group.serving_since_s
        before = 0 if served_s >= self._config.stable_after_s else group.failures
        if not may_repeat:
            return Retry(failures=before, not_before_s=now_s)
        failures = before + 1
        # The exponent is bounded: 2.0**1100 is not a number any more.
        pause_s = 0.0 if failures == 1 else self._config.backoff_s * 2.0 ** min(failures - 2, 32)
        return Retry(failures=failures, not_before_s=now_s + min(pause_s, self._config.backoff_limit_s))

    def in_vain(self, now_s: float, group: GroupRecord) -> bool:
        """Enough workers are there, but for as long as a replacement is waited for they have failed to form."""
        if not group.has_served or group.failures < 2 or group.vacant_since_s is None:
            return False
        return now_s - group.vacant_since_s >= self._config.replacement_wait_s

    def missing(self, now_s: float, group: GroupRecord, shortage: str) -> Missing:
        """A group that has not enough workers waits for a replacement, and then makes do with fewer ranks (see
        `resizing`).

        One that has never served waits for its full size, however long: nobody's stream depends on it, workers
        come up one after the other, and an operator who asked for so many ranks learns that one does not come.
        """
        since_s = now_s if group.vacant_since_s is None else group.vacant_since_s
        if not group.recovering and not group.has_served:
            return Missing(overdue=False, reason=shortage)
        wait_s = self._config.replacement_wait_s
        if now_s - since_s < wait_s:
            return Missing(overdue=False, reason=f"{shortage}; waits up to {wait_s:g} s")
        return Missing(overdue=True, reason=f"{shortage}; none came within {wait_s:g} s")


def _is_culprit(recovery: Recovery, worker: WorkerRecord) -> bool:
    """Whether it is just the process that is blamed. Ids are taken over, and two hosts may have one process number."""
    known = recovery.culprit
    return known is not None and (known.worker_id, known.pid) == (worker.worker_id, worker.pid)


def _culprit(worker: WorkerRecord, group: GroupRecord) -> CulpritRecord:
    rank = next((m.rank for m in group.members if m.worker_id == worker.worker_id), None)
    return _culprit_at(worker, rank)


def _culprit_at(worker: WorkerRecord, rank: int | None) -> CulpritRecord:
    return CulpritRecord(
        worker_id=worker.worker_id, rank=rank, host=worker.host, device=worker.device.name, pid=worker.pid
    )

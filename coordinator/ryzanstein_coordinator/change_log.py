"""One log line for every change of a worker or a group, and none in between."""

from __future__ import annotations

import structlog

from .group_record import GroupRecord, GroupState, Phase, Recovery
from .state import ClusterState, worker_state
from .worker_record import WorkerRecord, WorkerState

log = structlog.get_logger("ryzanstein_coordinator.cluster")

_BAD = (WorkerState.SUSPECT, WorkerState.LOST, WorkerState.FAILED)


def log_changes(before: ClusterState, after: ClusterState) -> None:
    """Compares two states and says what is different."""
    if after.groups is not before.groups:
        for old, new in zip(before.groups, after.groups, strict=True):
            _log_group(old, new)
    if after.workers is before.workers and after.groups is before.groups:
        return
    for worker_id, worker in after.workers.items():
        old_worker = before.workers.get(worker_id)
        if worker is not old_worker or (worker.group is not None and after.groups is not before.groups):
            _log_worker(before, after, old_worker, worker)
    for worker_id in before.workers.keys() - after.workers.keys():
        log.info("worker_gone", worker=worker_id)


def _log_group(old: GroupRecord, new: GroupRecord) -> None:
    if (old.phase, old.epoch, old.reason) != (new.phase, new.epoch, new.reason):
        bad = new.state in (GroupState.RECOVERING, GroupState.WAITING) and old.phase is Phase.SERVING
        (log.warning if bad else log.info)(
            "group",
            group=new.group_id,
            epoch=new.epoch,
            state=new.state.value,
            phase=new.phase.value,
            reason=new.reason,
        )
    recovery = new.recovery
    if recovery is None or recovery == old.recovery:
        return
    before = old.recovery
    if before is not None and before.detected_at_s != recovery.detected_at_s:
        if not before.closed:  # another fault came before its streams were back
            _log_recovery(new.group_id, before)
        before = None
    if recovery.closed and (before is None or not before.closed):
        _log_recovery(new.group_id, recovery)


def _log_recovery(group_id: str, recovery: Recovery) -> None:
    """The one line of a fault: who, why, how long, and where every rank stood. Seconds since the fault was seen."""

    def since(moment_s: float | None) -> float | None:
        return None if moment_s is None else round(moment_s - recovery.seen_at_s, 4)

    culprit = recovery.culprit
    log.warning(
        "recovery",
        group=group_id,
        epoch=recovery.epoch,
        broken_epoch=recovery.broken_epoch,
        cause=recovery.cause.value,
        culprit=None if culprit is None else culprit.worker_id,
        rank=None if culprit is None else culprit.rank,
        host=None if culprit is None else culprit.host,
        device=None if culprit is None else culprit.device,
        pid=None if culprit is None else culprit.pid,
        detected_s=since(recovery.detected_at_s),
        fenced_s=since(recovery.fenced_at_s),
        reformed_s=since(recovery.reformed_at_s),
        first_token_s=since(recovery.first_token_at_s),
        requests_resumed=recovery.requests_resumed,
        ranks={report.rank: f"{report.collective or 'none'} #{report.sequence}" for report in recovery.ranks},
        reason=recovery.reason,
    )


def _log_worker(
    before: ClusterState, after: ClusterState, old: WorkerRecord | None, new: WorkerRecord
) -> None:
    state = worker_state(new, after.group(new.group or ""))
    if old is not None:
        was = worker_state(old, before.group(old.group or ""))
        if (was, old.incarnation, old.rank) == (state, new.incarnation, new.rank):
            return
    group = after.group(new.group or "")
    (log.warning if state in _BAD else log.info)(
        "worker",
        worker=new.worker_id,
        state=state.value,
        group=new.group,
        rank=new.rank,
        epoch=None if group is None else group.epoch,
        host=new.host,
        pid=new.pid,
        device=new.device.name,
        reason=new.lost_reason or new.failed_reason or None,
    )

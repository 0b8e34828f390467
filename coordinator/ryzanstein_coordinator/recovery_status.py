"""Faults as people see them: the last recovery, and the history of epochs that they led to."""

from __future__ import annotations

from ryzanstein.v1 import operations_pb2

from .epoch_history import EpochRecord
from .group_record import CulpritRecord, RankReport, Recovery


def recovery_status(recovery: Recovery, *, with_ranks: bool = True) -> operations_pb2.RecoveryStatus:
    """Seconds count from the first sign of the fault. `with_ranks`: also where each rank stood."""

    def since(moment_s: float | None) -> float | None:
        return None if moment_s is None else moment_s - recovery.seen_at_s

    return operations_pb2.RecoveryStatus(
        epoch=recovery.epoch,
        cause=recovery.cause,
        culprit=None if recovery.culprit is None else _culprit(recovery.culprit),
        detected_s=since(recovery.detected_at_s) or 0.0,
        fenced_s=since(recovery.fenced_at_s),
        reformed_s=since(recovery.reformed_at_s),
        first_token_s=since(recovery.first_token_at_s),
        requests_resumed=recovery.requests_resumed,
        reason=recovery.reason,
        ranks=[_rank(report) for report in recovery.ranks] if with_ranks else [],
    )


def epoch_status(record: EpochRecord) -> operations_pb2.EpochStatus:
    """One line of the history."""
    recovery = record.recovery
    return operations_pb2.EpochStatus(
        group=record.group_id,
        epoch=record.epoch,
        tensor_parallel_size=record.size,
        members=record.members,
        began_unix_s=record.began_unix_s,
        served_unix_s=record.served_unix_s,
        ended_unix_s=record.ended_unix_s,
        reason=record.reason,
        recovery=None if recovery is None else recovery_status(recovery, with_ranks=False),
    )


def _culprit(culprit: CulpritRecord) -> operations_pb2.Culprit:
    return operations_pb2.Culprit(
        worker_id=culprit.worker_id,
        rank=culprit.rank,
        host=culprit.host,
        device=culprit.device,
        pid=culprit.pid,
    )


def _rank(report: RankReport) -> operations_pb2.RankReport:
    last = operations_pb2.CollectiveStatus(name=report.collective, sequence=report.sequence)
    return operations_pb2.RankReport(
        rank=report.rank, worker_id=report.worker_id, last_collective=last if report.collective else None
    )

"""Where each rank of an epoch stood when it broke, as the ranks tell it themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .group_record import Member, RankReport
from .worker_record import Telemetry


def reports_at_fault(
    members: Iterable[Member], telemetry: Mapping[str, Telemetry | None], epoch: int
) -> tuple[RankReport, ...]:
    """By rank, from the last heartbeats; a rank that has told nothing of this epoch stands nowhere."""
    reports = []
    for member in members:
        report = RankReport(member.rank, member.worker_id)
        heard = telemetry.get(member.worker_id)
        reports.append(report if heard is None else updated(report, heard, epoch))
    return tuple(reports)


def updated(report: RankReport, heard: Telemetry, epoch: int) -> RankReport:
    """With what a heartbeat says. A rank that has left tells where with the fault that it left for."""
    fault = heard.fault
    if fault is not None and fault.epoch == epoch and fault.collective:
        return replace(report, collective=fault.collective, sequence=fault.collective_sequence)
    if heard.epoch == epoch and heard.collective:
        return replace(report, collective=heard.collective, sequence=heard.collective_sequence)
    return report

"""Who is well, and who is not: leases, heartbeats, progress, and what workers report. Pure: time is passed
in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .config import OrchestratorConfig
from .group_record import Cause, GroupRecord, Phase
from .leader_stream import MARGIN_S
from .standstills import Hearing, Standstills, with_latest
from .state import ClusterState
from .worker_record import FaultReport, Telemetry, WorkerRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A group is broken."""

    cause: Cause
    #: Worker id; None if nobody can be blamed yet.
    culprit: str | None
    reason: str
    #: The first sign of it, on the coordinator's clock.
    seen_at_s: float
    #: Id of the worker whose own report it is; None: the coordinator saw it.
    told_by: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """How long ago a worker was heard of."""

    #: Without the time in which the coordinator could hear nothing.
    age_s: float
    suspect: bool
    expired: bool


class HealthMonitor:
    """Judges; it does nothing about it. Holds no state of its own."""

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config

    def lease(
        self,
        now_s: float,
        worker: WorkerRecord,
        telemetry: Telemetry | None,
        hearing: Hearing,
    ) -> Lease:
        """Silence while the coordinator itself could hear nothing proves nothing."""
        heard_at_s = (
            worker.registered_at_s if telemetry is None else max(worker.registered_at_s, telemetry.heard_at_s)
        )
        age_s = hearing.silence_s(now_s, heard_at_s)
        return Lease(age_s, age_s > self._config.suspect_after_s, age_s > self._config.lease_ttl_s)

    def stood_still(self, now_s: float, last_tick_s: float) -> bool:
        """Whether the coordinator itself was stopped for so long since its last tick that all leases begin anew."""
        return now_s - last_tick_s > self._config.lease_ttl_s / 2

    def standstills(self, now_s: float, state: ClusterState) -> Standstills:
        """When the coordinator heard nothing, up to now: heartbeats wait unread then."""
        config = self._config
        # Ticks come four times as often.
        usual_s = config.heartbeat_interval_s
        return with_latest(
            state.standstills, now_s, state.last_tick_s, usual_s, config.lease_ttl_s + MARGIN_S
        )

    def fault(
        self,
        now_s: float,
        group: GroupRecord,
        workers: Mapping[str, WorkerRecord],
        telemetry: Mapping[str, Telemetry],
        hearing: Hearing,
    ) -> Fault | None:
        """What is wrong with a group that forms or serves, as far as its members' reports tell.

        Dead members are not looked for here: a broken stream and an expired lease are events of their own.
        """
        reports = [
            (worker_id, report)
            for member in group.members
            if (report := telemetry.get(worker_id := member.worker_id)) is not None
        ]
        for worker_id, report in reports:
            if report.device_failure:
                return _device_failed(now_s, workers[worker_id], report.device_failure)
        for worker_id, report in reports:
            if report.fault is not None and report.fault.epoch == group.epoch:
                return _reported(now_s, group, workers[worker_id], report.fault)
        if group.phase is not Phase.SERVING:
            return None
        if why := group.stream.fault(now_s, hearing, self._config.lease_ttl_s + MARGIN_S):
            silent_s = group.stream.silent_s(now_s, hearing)
            return Fault(
                cause=Cause.STREAM,
                culprit=group.leader,
                reason=f"the leader {group.leader} does not take requests: {why}",
                seen_at_s=now_s - silent_s,
            )
        return self._left(now_s, group, reports) or self._stuck(now_s, group, reports)

    def progress_deadline_s(self, group: GroupRecord) -> float:
        """No step takes longer than this, unless the engine is stuck."""
        slowest_s = 0.0 if group.limits is None else group.limits.slowest_step_s
        return max(self._config.progress_deadline_s, slowest_s)

    def readiness(self, now_s: float, state: ClusterState) -> tuple[bool, str]:
        """Whether a request sent now would be generated, and why (not). The one truth of /readyz and gRPC
        health.
        """
        if state.draining:
            return False, "the server is stopping"
        reasons = []
        for group in state.groups:
            reason = self._unready(now_s, state, group)
            if not reason:
                ranks = f" with {group.size} of {group.full} ranks" if group.is_short else ""
                return True, f"group {group.group_id} serves{ranks} in epoch {group.epoch}"
            reasons.append(f"group {group.group_id}: {reason}")
        return False, "; ".join(reasons) or "there is no group"

    def _unready(self, now_s: float, state: ClusterState, group: GroupRecord) -> str:
        """Empty if the group serves."""
        if group.phase is not Phase.SERVING:
            return f"{group.state}: {group.reason}"
        hearing = Hearing(state.lease_floor_s, self.standstills(now_s, state))
        if not group.stream.takes_requests(now_s, hearing, self._config.suspect_after_s):
            return "the leader does not take requests"
        for member in group.members:
            worker, report = state.workers[member.worker_id], state.telemetry.get(member.worker_id)
            # What the next tick will find is true already.
            lease = self.lease(now_s, worker, report, hearing)
            if report is None or lease.expired:
                return f"{member.worker_id} (rank {member.rank}) was not heard of for a lease"
            age_s = report.progress_age_s
            if report.epoch == group.epoch and age_s > self.progress_deadline_s(group):
                return f"{member.worker_id} (rank {member.rank}) finished no step for {age_s:.0f} s"
        return ""

    def _left(self, now_s: float, group: GroupRecord, reports: list[tuple[str, Telemetry]]) -> Fault | None:
        """A member that is no longer in the epoch without saying why."""
        since_s = group.serving_since_s
        if since_s is None or now_s - since_s <= self._config.lease_ttl_s:
            return None  # beats from before the group stood may still be under way
        for worker_id, report in reports:
            if report.epoch != group.epoch and report.heard_at_s - since_s > self._config.lease_ttl_s:
                return Fault(
                    cause=Cause.ENGINE,
                    culprit=worker_id,
                    reason=f"{worker_id} is no longer in epoch {group.epoch}",
                    seen_at_s=now_s,
                    told_by=worker_id,
                )
        return None

    def _stuck(self, now_s: float, group: GroupRecord, reports: list[tuple[str, Telemetry]]) -> Fault | None:
        deadline_s = self.progress_deadline_s(group)
        inside = [(worker_id, report) for worker_id, report in reports if report.epoch == group.epoch]
        # As it was told. What has passed since proves nothing: who is silent is the lease's business, and a rank whose
        # engine goes on again says so with its next heartbeat.
        oldest_s = max((report.progress_age_s for _, report in inside), default=0.0)
        if oldest_s <= deadline_s:
            return None
        # The rank that has entered the fewest collectives is the one that the others wait for.
        ranked = sorted(inside, key=lambda entry: (entry[1].collective_sequence, entry[1].step))
        first = ranked[0][1]
        alone = len(ranked) == 1 or _position(ranked[1][1]) > _position(first)
        where = (
            f"{first.collective or 'step'} {first.collective_sequence if first.collective else first.step}"
        )
        who = f"{ranked[0][0]} stands at {where}" if alone else f"all ranks stand at {where}"
        return Fault(
            cause=Cause.STUCK,
            culprit=ranked[0][0] if alone else None,
            reason=f"no step was finished for {oldest_s:.1f} s: {who}",
            seen_at_s=now_s - oldest_s,
            told_by=ranked[0][0],
        )


def _position(report: Telemetry) -> tuple[int, int]:
    return report.collective_sequence, report.step


def _device_failed(now_s: float, worker: WorkerRecord, why: str) -> Fault:
    return Fault(
        cause=Cause.DEVICE,
        culprit=worker.worker_id,
        reason=f"{worker.worker_id} (rank {worker.rank}) reports: its device {worker.device.name} has failed: {why}",
        seen_at_s=now_s,
        told_by=worker.worker_id,
    )


def _reported(now_s: float, group: GroupRecord, worker: WorkerRecord, fault: FaultReport) -> Fault:
    """Whom a worker's own report blames: the peer that did not answer, or itself."""
    causes = {
        "collective": Cause.COLLECTIVE,
        "process": Cause.PROCESS,  # a watch on the host saw a peer's process end, before its sockets closed
        "device": Cause.DEVICE,
        "memory": Cause.MEMORY,
    }
    cause = causes.get(fault.kind, Cause.ENGINE)
    culprit: str | None = worker.worker_id
    if cause in (Cause.COLLECTIVE, Cause.PROCESS):
        known = fault.peer_rank is not None and fault.peer_rank < len(group.members)
        culprit = group.members[fault.peer_rank or 0].worker_id if known else None
        cause = cause if known else Cause.COLLECTIVE
    return Fault(
        cause=cause,
        culprit=culprit,
        reason=f"{worker.worker_id} (rank {worker.rank}) reports: {fault.message}",
        seen_at_s=now_s,
        told_by=worker.worker_id,
    )

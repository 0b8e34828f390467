"""Between the wire and the state: a heartbeat becomes telemetry, the state becomes what /cluster shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ryzanstein import __version__
from ryzanstein.v1 import cluster_pb2, operations_pb2, shard_worker_pb2

from .activity import WINDOW_S, Point
from .calls import limits_message
from .config import OrchestratorConfig
from .epoch_history import EpochRecord
from .group_record import GroupRecord, GroupState
from .recovery_status import epoch_status, recovery_status
from .served_model import ServedModel
from .state import ClusterState, group_state, worker_state
from .worker_record import FaultReport, Telemetry, WorkerRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupView:
    """A group, as the request path may ask for it."""

    group_id: str
    state: GroupState
    epoch: int
    leader_address: str | None
    limits: shard_worker_pb2.EngineLimits | None
    reason: str


def group_view(state: ClusterState, group: GroupRecord) -> GroupView:
    """The group as of this state."""
    leader = state.workers.get(group.leader or "")
    return GroupView(
        group_id=group.group_id,
        state=group_state(state, group),
        epoch=group.epoch,
        leader_address=None if leader is None else leader.address,
        limits=None if group.limits is None else limits_message(group.limits),
        reason=group.reason,
    )


def telemetry_of(now_s: float, request: cluster_pb2.HeartbeatRequest, total_bytes: int) -> Telemetry:
    """The heartbeat as a record. `total_bytes` is the device's, where the heartbeat does not say."""
    fault = None
    if request.HasField("fault"):
        fault = FaultReport(
            kind=request.fault.kind,
            message=request.fault.message,
            epoch=request.fault.epoch,
            peer_rank=request.fault.peer_rank if request.fault.HasField("peer_rank") else None,
            collective=request.fault.collective.name,
            collective_sequence=request.fault.collective.sequence,
        )
    health = request.device_health
    return Telemetry(
        heard_at_s=now_s,
        epoch=request.epoch,
        phase=request.phase,
        load_progress=min(1.0, _number(request.load_progress)),
        step=request.step,
        progress_age_s=_number(request.progress_age_s),
        total_bytes=request.memory.total_bytes or total_bytes,
        weights_bytes=request.memory.weights_bytes,
        kv_cache_bytes=request.memory.kv_cache_bytes,
        used_bytes=request.memory.used_bytes,
        collective=request.last_collective.name,
        collective_sequence=request.last_collective.sequence,
        communication_ratio=min(1.0, _number(request.communication_ratio)),
        step_duration_s=_number(request.step_duration_s),
        communication_s={name: _number(spent) for name, spent in request.communication_seconds.items()},
        communication_bytes=dict(request.communication_bytes),
        communication_operations=dict(request.communication_operations),
        leaving=request.state == cluster_pb2.WORKER_STATE_DRAINING,
        fault=fault,
        device_failure=health.failure,
        utilization_ratio=min(1.0, _number(health.utilization_ratio))
        if health.HasField("utilization_ratio")
        else None,
        temperature_celsius=_number(health.temperature_celsius)
        if health.HasField("temperature_celsius")
        else None,
        ecc_errors=health.ecc_errors if health.HasField("ecc_errors") else None,
    )


def _number(reported: float) -> float:
    """What is no number, or below 0, would spoil JSON and every comparison with it."""
    return max(0.0, reported) if math.isfinite(reported) else 0.0


def cluster_snapshot(
    now_s: float,
    state: ClusterState,
    *,
    config: OrchestratorConfig,
    model: ServedModel,
    dtype: str,
    max_model_len: int,
    counts: tuple[int, int],
    readiness: tuple[bool, str],
    traffic: Point,
    history: Sequence[EpochRecord],
    unix_s: float,
) -> operations_pb2.ClusterSnapshot:
    """What people see. `counts`: requests that run, and that wait."""
    groups = [_group(state, group) for group in state.groups]
    snapshot = operations_pb2.ClusterSnapshot(
        state=groups[0].state,
        epoch=groups[0].epoch,
        revision=state.revision,
        model=operations_pb2.ModelStatus(
            name=model.name,
            path=model.path,
            architecture=model.config.architecture,
            dtype=dtype,
            max_model_len=max_model_len,
            parameters=model.parameters,
            quantization=config.quantization,
        ),
        groups=groups,
        workers=[
            _worker(now_s, state, state.workers[worker_id], config) for worker_id in sorted(state.workers)
        ],
        requests=operations_pb2.RequestCounts(running=counts[0], waiting=counts[1]),
        readiness=operations_pb2.ReadinessStatus(ready=readiness[0], reason=readiness[1]),
        traffic=operations_pb2.TrafficStatus(window_s=WINDOW_S, **asdict(traffic)),
        history=[epoch_status(record) for record in history],
        unix_s=unix_s,
        release=__version__,
    )
    recoveries = [group.recovery for group in state.groups if group.recovery is not None]
    if recoveries:
        latest = max(recoveries, key=lambda recovery: (recovery.detected_at_s, recovery.epoch))
        snapshot.last_recovery.CopyFrom(recovery_status(latest))
    return snapshot


def _group(state: ClusterState, group: GroupRecord) -> operations_pb2.GroupStatus:
    leader = state.telemetry.get(group.leader or "")
    status = operations_pb2.GroupStatus(
        id=group.group_id,
        state=group_state(state, group),
        epoch=group.epoch,
        tensor_parallel_size=group.size,
        full_tensor_parallel_size=group.full,
        step=0 if leader is None or leader.epoch != group.epoch else leader.step,
        reason=group.reason,
    )
    if group.leader is not None:
        status.leader = group.leader
    return status


def _worker(
    now_s: float, state: ClusterState, worker: WorkerRecord, config: OrchestratorConfig
) -> operations_pb2.WorkerStatus:
    report = state.telemetry.get(worker.worker_id)
    heard_s = worker.registered_at_s
    if report is not None:
        heard_s = max(heard_s, report.heard_at_s)
    status = operations_pb2.WorkerStatus(
        id=worker.worker_id,
        incarnation=worker.incarnation,
        group=worker.group,
        state=worker_state(worker, state.group(worker.group or "")),
        rank=worker.rank,
        host=worker.host,
        pid=worker.pid,
        device=worker.device.name,
        device_name=worker.device.model,
        heartbeat_age_s=max(0.0, now_s - heard_s),
        lease_ttl_s=config.lease_ttl_s,
        memory=operations_pb2.WorkerMemory(total_bytes=worker.device.total_bytes),
        phase=worker.lost_reason or worker.failed_reason,
    )
    if report is None:
        return status
    status.memory.total_bytes = report.total_bytes
    status.memory.weights_bytes = report.weights_bytes
    status.memory.kv_cache_bytes = report.kv_cache_bytes
    status.memory.used_bytes = report.used_bytes
    status.step = report.step
    status.load_progress = report.load_progress
    status.step_duration_s = report.step_duration_s
    status.communication_ratio = report.communication_ratio
    status.progress_age_s = report.progress_age_s
    status.device_health.CopyFrom(
        operations_pb2.DeviceStatus(
            failure=report.device_failure,
            utilization_ratio=report.utilization_ratio,
            temperature_celsius=report.temperature_celsius,
            ecc_errors=report.ecc_errors,
        )
    )
    status.phase = status.phase or report.phase
    if report.collective:
        status.last_collective.name = report.collective
        status.last_collective.sequence = report.collective_sequence
    return status

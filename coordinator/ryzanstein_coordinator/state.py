"""What the control plane knows, as frozen records. Deciders make new ones; nothing here is ever changed in
place.

What is asked for and decided (`WorkerRecord`, `GroupRecord`) is kept apart from what workers report many
times a second (`Telemetry`), so that a heartbeat costs no more than a new telemetry record, and `revision`
grows only when something happened that a person would call a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .group_record import GroupRecord, GroupState, Phase
from .standstills import Standstills
from .worker_record import Telemetry, WorkerRecord, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """Everything that decisions depend on."""

    workers: Mapping[str, WorkerRecord] = field(default_factory=dict)
    telemetry: Mapping[str, Telemetry] = field(default_factory=dict)
    groups: tuple[GroupRecord, ...] = ()
    #: Highest epoch that was given to a group or seen by any worker.
    highest_epoch: int = 0
    #: Epochs up to this one are durable and may be announced.
    committed_epoch: int = 0
    draining: bool = False
    #: Grows with every change of anything but telemetry.
    revision: int = 0
    last_tick_s: float = 0.0
    #: Leases count from here at the earliest: before it, the coordinator itself was not running.
    lease_floor_s: float = 0.0
    #: Shorter ones, after which leases go on where they were. As of the last tick.
    standstills: Standstills = ()

    def group(self, group_id: str) -> GroupRecord | None:
        return next((group for group in self.groups if group.group_id == group_id), None)

    @property
    def announced_epoch(self) -> int:
        """The highest epoch that anybody was told."""
        return max((group.epoch for group in self.groups), default=0)


def worker_state(worker: WorkerRecord, group: GroupRecord | None) -> WorkerState:
    """What a person should see of the worker. `group` is the one that it belongs to."""
    if worker.lost_reason:
        return WorkerState.LOST
    if worker.failed_reason:
        return WorkerState.FAILED
    if worker.suspect:
        return WorkerState.SUSPECT
    if worker.draining:
        return WorkerState.DRAINING
    if not worker.heard:
        return WorkerState.JOINING
    placed = worker.rank is not None and group is not None
    if placed and group is not None and group.phase is Phase.SERVING:
        return WorkerState.ACTIVE
    return WorkerState.LOADING if placed or worker.loading is not None else WorkerState.STANDBY


def group_state(state: ClusterState, group: GroupRecord) -> GroupState:
    """What a person should see of the group."""
    if state.draining and group.phase is Phase.SERVING:
        return GroupState.DRAINING
    return group.state

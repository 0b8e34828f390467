"""What the control plane knows, as frozen records. Deciders make new ones; nothing here is ever changed in
place.

What is asked for and decided (`WorkerRecord`, `GroupRecord`) is kept apart from what workers report many
times a second (`Telemetry`), so that a heartbeat costs no more than a new telemetry record, and `revision`
grows only when something happened that a person would call a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class WorkerState(StrEnum):
    """What /cluster shows of a worker."""

    JOINING = "joining"
    STANDBY = "standby"
    LOADING = "loading"
    ACTIVE = "active"
    SUSPECT = "suspect"
    LOST = "lost"
    FAILED = "failed"
    DRAINING = "draining"


class GroupState(StrEnum):
    """What /cluster shows of a group, and of the cluster."""

    WAITING = "waiting"
    LOADING = "loading"
    FORMING = "forming"
    SERVING = "serving"
    RECOVERING = "recovering"
    DEGRADED = "degraded"
    DRAINING = "draining"


class Phase(StrEnum):
    """Where a group's machine stands: VACANT → (FENCING) → LOADING → FORMING → SERVING → FENCING …"""

    #: No members; waits for workers, or for a pause to end.
    VACANT = "vacant"
    #: The next epoch is being committed, and the ranks of the last one are leaving it.
    FENCING = "fencing"
    LOADING = "loading"
    FORMING = "forming"
    SERVING = "serving"


class Cause(StrEnum):
    """What a recovery was about; the label of `recoveries_total`."""

    #: The heartbeat stream broke, or the process was replaced by a new one.
    PROCESS = "process"
    #: Not heard of for a lease: hung, stopped or cut off.
    LEASE = "lease"
    #: A collective failed or timed out at a survivor.
    COLLECTIVE = "collective"
    #: Steps stand still while heartbeats go on.
    STUCK = "stuck"
    DEVICE = "device"
    MEMORY = "memory"
    ENGINE = "engine"
    #: The coordinator can't open the leader's Execute stream.
    STREAM = "stream"
    #: Planned: a worker is taken out of service.
    DRAIN = "drain"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """A device as its worker described it."""

    name: str = "cpu"
    kind: str = "cpu"
    model: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    baseline_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ShardKey:
    """Which part of the model; workers with equal keys hold the same bytes."""

    rank: int
    size: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Shard:
    """What a worker said that it holds."""

    key: ShardKey
    #: False: it needs a peer to send it the weights when the group is formed.
    loaded: bool
    #: It can read any rank's shard, also for a peer.
    has_files: bool
    weights_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One process, from its registration until it is forgotten."""

    worker_id: str
    incarnation: str
    registered_at_s: float
    host: str = ""
    host_id: str = ""
    pid: int = 0
    address: str = ""
    device: DeviceRecord = DeviceRecord()
    release: str = ""
    cpu_threads: int = 0
    #: Earlier processes under this id, newest last: they are dead to us.
    replaced: tuple[str, ...] = ()
    #: Number of its heartbeat stream; 0 before the first one is open. The end of an older stream means
    #: nothing.
    stream: int = 0
    #: A heartbeat came on that stream: it is known what the worker is in.
    heard: bool = False

    #: The highest epoch that it was told: it refuses calls of an older one.
    seen_epoch: int = 0
    #: The group that it belongs to, also while that group recovers.
    group: str | None = None
    #: Only in the current epoch.
    rank: int | None = None
    shard: Shard | None = None
    #: A LoadShard call is under way.
    loading: ShardKey | None = None
    #: After a load that failed.
    load_not_before_s: float = 0.0

    #: Not 0: it must leave what it is in, by an Abort of this epoch, before it gets a rank.
    fence_epoch: int = 0
    #: An Abort call is under way.
    fencing: bool = False
    fence_not_before_s: float = 0.0

    #: How often it was the culprit while its process lived on; others are preferred to it.
    strikes: int = 0
    suspect: bool = False
    draining: bool = False
    #: A Drain call was sent.
    leaving: bool = False
    lost_reason: str = ""
    lost_at_s: float = 0.0
    #: It can't serve as it is (other checkpoint, broken device); stays until its process is replaced.
    failed_reason: str = ""

    @property
    def alive(self) -> bool:
        """Its process is taken to run."""
        return not self.lost_reason

    @property
    def usable(self) -> bool:
        """A rank may be given to it, once it is fenced."""
        return self.heard and self.alive and not self.failed_reason and not self.leaving

    @property
    def placeable(self) -> bool:
        """A rank may be given to it now."""
        return self.usable and not self.fence_epoch and not self.suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultReport:
    """A failure that a worker saw."""

    kind: str
    message: str
    epoch: int
    peer_rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """The last heartbeat of a worker."""

    heard_at_s: float
    epoch: int = 0
    phase: str = ""
    load_progress: float = 0.0
    step: int = 0
    progress_age_s: float = 0.0
    total_bytes: int = 0
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    used_bytes: int = 0
    collective: str = ""
    collective_sequence: int = 0
    communication_ratio: float = 0.0
    step_duration_s: float = 0.0
    leaving: bool = False
    fault: FaultReport | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One rank of one epoch."""

    rank: int
    worker_id: str
    incarnation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBounds:
    """What the ledger allows every rank of a group."""

    block_size: int
    #: With the scratch block, which is never handed out.
    num_blocks: int
    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    #: No step takes longer on a device of this kind; see `memory_ledger.slowest_step_s`.
    slowest_step_s: float = 0.0
    #: What the ledger adds up to, on the rank that needs most.
    needed_bytes: int = 0
    #: All that a rank may use of its device; 0: not bounded.
    memory_bytes: int = 0

    @property
    def kv_tokens(self) -> int:
        """Tokens that the pool holds."""
        return (self.num_blocks - 1) * self.block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class CulpritRecord:
    """Who failed, as it was then: the worker may have been replaced since."""

    worker_id: str
    rank: int | None
    host: str
    device: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One fault and what became of it. Moments are on the coordinator's clock."""

    #: The epoch that replaces the broken one.
    epoch: int
    cause: Cause
    culprit: CulpritRecord | None
    reason: str
    #: The first sign of it.
    seen_at_s: float
    detected_at_s: float
    fenced_at_s: float | None = None
    reformed_at_s: float | None = None
    first_token_at_s: float | None = None
    requests_resumed: int = 0
    #: The members of the epoch that broke.
    members: tuple[Member, ...] = ()

    @property
    def is_open(self) -> bool:
        """The group does not serve again yet."""
        return self.reformed_at_s is None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """One replica of the model: its epoch, its members, and where its machine stands."""

    group_id: str
    size: int
    phase: Phase = Phase.VACANT
    reason: str = "waiting for workers"
    #: The last epoch that was announced; 0: none yet.
    epoch: int = 0
    #: Members were placed in `epoch`: the next ones need a new one.
    epoch_used: bool = False
    #: Not 0: this epoch must be durable before anybody hears of it.
    committing: int = 0
    commit_failed: bool = False
    members: tuple[Member, ...] = ()
    #: Who held the ranks last, for placement: by rank.
    previous: tuple[str, ...] = ()
    #: Ids of workers that must leave the last epoch.
    fencing: frozenset[str] = frozenset()
    fence_deadline_s: float = 0.0
    #: Ids of members that have answered in this phase: loaded while LOADING, joined while FORMING.
    answered: frozenset[str] = frozenset()
    limits: EngineBounds | None = None
    backend: str = ""
    #: In a row, without a stable time of serving in between.
    failures: int = 0
    not_before_s: float = 0.0
    #: Since when members are missing; None: they are not.
    vacant_since_s: float | None = None
    replacement_overdue: bool = False
    serving_since_s: float | None = None
    #: Complaints of the router about this epoch's Execute stream, in a row.
    stream_breaks: int = 0
    stream_broken_at_s: float = 0.0
    recovery: Recovery | None = None

    @property
    def recovering(self) -> bool:
        return self.recovery is not None and self.recovery.is_open

    @property
    def leader(self) -> str | None:
        """Worker id of rank 0."""
        return self.members[0].worker_id if self.members else None

    @property
    def state(self) -> GroupState:
        if self.phase is Phase.SERVING:
            return GroupState.SERVING
        if self.recovering and not self.replacement_overdue:
            return GroupState.RECOVERING
        return {
            Phase.VACANT: GroupState.WAITING,
            Phase.FENCING: GroupState.FORMING,
            Phase.LOADING: GroupState.LOADING,
            Phase.FORMING: GroupState.FORMING,
        }[self.phase]


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

"""What is known of a worker, as frozen records: what it is and was told, apart from what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """A device as its worker described it."""

    name: str = "cpu"
    kind: str = "cpu"
    model: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    baseline_bytes: int = 0
    #: Of a CPU: what it computes with, as far as other instructions give other bits; empty: not known.
    instructions: str = ""
    #: Of a CPU: its products take no memory for kernels of oneDNN; see `memory_ledger.kernel_bytes`.
    tiles: bool = False
    #: Of a GPU: its own for good; empty: not known.
    uuid: str = ""

    @property
    def identity(self) -> str:
        """Equal for processes of one host that use the same device: each may see another one as cuda:0."""
        return self.uuid or self.name


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
    #: Its server speaks TLS.
    tls: bool = False
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
    #: What it holds besides, as a spare: it can take any of these ranks at once, and drops the rest.
    others: tuple[Shard, ...] = ()
    #: A LoadShard call is under way; `loading_beside`: what it holds already stays.
    loading: ShardKey | None = None
    loading_beside: bool = False
    #: Loads that failed, in a row, and the end of the pause after the last one.
    load_failures: int = 0
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
    #: A Drain call was sent. Not 0: it failed, and is sent again at this moment if the process is still there.
    leaving: bool = False
    drain_again_at_s: float = 0.0
    lost_reason: str = ""
    lost_at_s: float = 0.0
    #: It can't serve as it is (other checkpoint, broken device); stays until its process is replaced.
    failed_reason: str = ""

    @property
    def computing(self) -> str:
        """All that its sums depend on besides their terms; empty: not known."""
        instructions = self.device.instructions
        return f"{instructions}, --cpu-threads {self.cpu_threads}" if instructions else ""

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All that it holds."""
        return self.others if self.shard is None else (self.shard, *self.others)

    @property
    def keys(self) -> tuple[ShardKey, ...]:
        """Of the shards that it holds or loads."""
        held = tuple(shard.key for shard in self.shards)
        if self.loading is None:
            return held
        return (*held, self.loading) if self.loading_beside else (self.loading,)

    def with_shard(self, shard: Shard) -> WorkerRecord:
        """The record after `loading` was answered."""
        if self.loading_beside and self.shard is not None:
            return replace(self, loading=None, loading_beside=False, others=(*self.others, shard))
        return replace(self, loading=None, loading_beside=False, shard=shard, others=())

    @property
    def alive(self) -> bool:
        """Its process is taken to run."""
        return not self.lost_reason

    @property
    def able(self) -> bool:
        """It can keep a rank that it has."""
        return self.alive and not self.failed_reason and not self.leaving

    @property
    def usable(self) -> bool:
        """A rank may be given to it, once it is fenced."""
        return self.able and self.heard

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
    #: To blame: it did not answer, or what it gave was of no use.
    peer_rank: int | None = None
    #: The operation that was begun last.
    collective: str = ""
    collective_sequence: int = 0


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
    #: Operation → seconds since the group of this epoch was formed.
    communication_s: Mapping[str, float] = field(default_factory=dict)
    #: Operation → bytes handed to it, and calls of it, since then.
    communication_bytes: Mapping[str, int] = field(default_factory=dict)
    communication_operations: Mapping[str, int] = field(default_factory=dict)
    step_duration_s: float = 0.0
    leaving: bool = False
    fault: FaultReport | None = None
    #: Why its device can't be relied on; empty: it can.
    device_failure: str = ""
    #: What a GPU says of itself; None: it does not.
    utilization_ratio: float | None = None
    temperature_celsius: float | None = None
    ecc_errors: int | None = None

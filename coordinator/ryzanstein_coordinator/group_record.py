"""What is known of a group, as frozen records: its epoch, its ranks, their bounds, and its last recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .leader_stream import LeaderStream


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
    #: Planned: a group that had to shrink grows again.
    RESIZE = "resize"


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
    prefix_caching: bool = True
    max_decode_slowdown: float = 0.0
    #: Rows at which GPUs capture steps that only decode.
    graph_sizes: tuple[int, ...] = ()
    #: What computes attention on GPUs; empty: on CPUs.
    gpu_attention: str = ""

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


@dataclass(frozen=True, slots=True)
class RankReport:
    """The collective that a rank of the broken epoch began last; empty: it told of none."""

    rank: int
    worker_id: str
    collective: str = ""
    sequence: int = 0


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
    #: The culprit itself told of it: it lived then, so that its process ends later is a consequence.
    told_by_culprit: bool = False
    #: It counts among the failures in a row of its group.
    counted: bool = False
    fenced_at_s: float | None = None
    reformed_at_s: float | None = None
    first_token_at_s: float | None = None
    requests_resumed: int = 0
    #: `requests_resumed` is known: the router has said.
    told: bool = False
    #: Those that were resumed have all ended before the first token.
    resumed_gone: bool = False
    #: The log tells of it when this is set, and never again: all is known, or it was time.
    closed: bool = False
    #: The epoch that broke, its members, and where each of them stood.
    broken_epoch: int = 0
    members: tuple[Member, ...] = ()
    ranks: tuple[RankReport, ...] = ()

    @property
    def is_open(self) -> bool:
        """The group does not serve again yet."""
        return self.reformed_at_s is None

    @property
    def is_complete(self) -> bool:
        """Nothing more will be known of it: streams flow again, or there was none, or none is left."""
        flows = self.first_token_at_s is not None
        return self.told and (flows or self.resumed_gone or not self.requests_resumed)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRecord:
    """One replica of the model: its epoch, its members, and where its machine stands."""

    group_id: str
    #: Ranks of the epoch that stands or is to be formed.
    size: int
    #: Ranks that it is meant to have; 0: `size`.
    full_size: int = 0
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
    #: While LOADING: all have answered, and their weights can't be had; another worker is waited for.
    lacks_reader: bool = False
    #: Of `size` ranks.
    limits: EngineBounds | None = None
    #: By size: the bounds with which it has served.
    planned: Mapping[int, EngineBounds] = field(default_factory=dict)
    #: What an earlier coordinator promised; 0: not known.
    stored_model_len: int = 0
    backend: str = ""
    #: In a row, without a stable time of serving in between.
    failures: int = 0
    not_before_s: float = 0.0
    #: Since when members are missing; None: they are not.
    vacant_since_s: float | None = None
    replacement_overdue: bool = False
    serving_since_s: float | None = None
    #: This epoch's Execute stream, while it serves.
    stream: LeaderStream = field(default_factory=LeaderStream)
    recovery: Recovery | None = None
    #: There is something to go on with: it stood, if only under an earlier coordinator.
    has_served: bool = False
    #: Why it has fewer ranks than it is meant to have.
    shortfall: str = ""
    #: Not 0: so many ranks are to form the next epoch; tried once.
    growing_to: int = 0
    #: Not 0: the epoch that forms has more ranks than the last one that stood, which had so many.
    grew_from: int = 0
    #: How often it had to shrink, or failed to grow, without a stable time at full size in between.
    shrinks: int = 0

    @property
    def full(self) -> int:
        """Ranks that it is meant to have."""
        return self.full_size or self.size

    @property
    def is_short(self) -> bool:
        """It has fewer ranks than it is meant to have."""
        return self.size < self.full

    @property
    def max_model_len(self) -> int | None:
        """What streams were promised; None: nothing yet."""
        return self.stored_model_len or None if self.limits is None else self.limits.max_model_len

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
            return GroupState.DEGRADED if self.is_short else GroupState.SERVING
        if self.lacks_reader and self.phase is Phase.LOADING:
            return GroupState.WAITING
        if self.recovering and not self.replacement_overdue:
            return GroupState.RECOVERING
        return {
            Phase.VACANT: GroupState.WAITING,
            Phase.FENCING: GroupState.FORMING,
            Phase.LOADING: GroupState.LOADING,
            Phase.FORMING: GroupState.FORMING,
        }[self.phase]

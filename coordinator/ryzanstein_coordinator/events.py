"""What can happen to the cluster, as values: what the deciders are told."""

from __future__ import annotations

from dataclasses import dataclass

from .worker_record import ShardKey, Telemetry, WorkerRecord


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A worker was accepted. The record is as of its registration; `highest_epoch` is the highest it ever
    saw.
    """

    worker: WorkerRecord
    highest_epoch: int = 0


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """A heartbeat stream with this number began."""

    worker_id: str
    incarnation: str
    stream: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A heartbeat stream is over, whoever ended it."""

    worker_id: str
    incarnation: str
    stream: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat."""

    worker_id: str
    incarnation: str
    telemetry: Telemetry


@dataclass(frozen=True, slots=True)
class EpochCommitted:
    """Epochs up to this one are on disk."""

    epoch: int


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The store could not write."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ShardLoaded:
    """LoadShard was answered."""

    worker_id: str
    incarnation: str
    key: ShardKey
    loaded: bool
    has_files: bool
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class ShardRefused:
    """LoadShard failed; `permanent`: this process will never load it. Not its `own_fault`: it was not reached, or did
    not answer.
    """

    worker_id: str
    incarnation: str
    key: ShardKey
    permanent: bool
    reason: str
    own_fault: bool = True


@dataclass(frozen=True, slots=True)
class Fenced:
    """Abort was answered: the worker has left whatever it was in."""

    worker_id: str
    incarnation: str
    epoch: int


@dataclass(frozen=True, slots=True)
class FenceFailed:
    """Abort was not answered in time, or refused."""

    worker_id: str
    incarnation: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """JoinGroup was answered."""

    group_id: str
    epoch: int
    worker_id: str
    backend: str


@dataclass(frozen=True, slots=True)
class JoinFailed:
    """JoinGroup failed. `own_fault`: for a reason of this worker's own, not because a peer did not come."""

    group_id: str
    epoch: int
    worker_id: str
    own_fault: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ExecuteBroken:
    """The router lost the leader's stream, or could not open it."""

    group_id: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ExecuteAlive:
    """The leader has taken the router's stream of this epoch, and perhaps sent tokens on it."""

    group_id: str
    epoch: int
    flows: bool = False


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first token of this epoch reached the coordinator."""

    group_id: str
    epoch: int
    at_s: float


@dataclass(frozen=True, slots=True)
class RequestsResumed:
    """So many unfinished requests were submitted to the new epoch."""

    group_id: str
    epoch: int
    count: int


@dataclass(frozen=True, slots=True)
class ResumedGone:
    """All of these have ended, and none of them has a token of this epoch."""

    group_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Somebody wants this worker out of service."""

    worker_id: str


@dataclass(frozen=True, slots=True)
class DrainFailed:
    """Drain was not answered: the process is ending already, or it was not reached."""

    worker_id: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class DrainCluster:
    """The coordinator is about to stop: nothing new is admitted, what runs may end."""


Event = (
    Tick
    | Registered
    | StreamOpened
    | StreamEnded
    | Beat
    | EpochCommitted
    | CommitFailed
    | ShardLoaded
    | ShardRefused
    | Fenced
    | FenceFailed
    | Joined
    | JoinFailed
    | ExecuteBroken
    | ExecuteAlive
    | FirstToken
    | RequestsResumed
    | ResumedGone
    | DrainWorker
    | DrainFailed
    | DrainCluster
)

"""What can be done about the cluster, as values: what the deciders ask for and the executor carries out."""

from __future__ import annotations

from dataclasses import dataclass

from .group_record import Cause, EngineBounds, Member
from .worker_record import ShardKey


@dataclass(frozen=True, slots=True)
class CommitEpoch:
    """Make all epochs up to this one durable."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RememberMembers:
    """Store who holds the ranks and how long streams may be, so that a restarted coordinator gives it back."""

    group_id: str
    epoch: int
    members: tuple[Member, ...]
    #: What streams were promised.
    max_model_len: int = 0


@dataclass(frozen=True, slots=True)
class LoadShard:
    """Call LoadShard; the answer to an earlier call for another shard means nothing any more."""

    group_id: str
    epoch: int
    worker_id: str
    incarnation: str
    key: ShardKey
    limits: EngineBounds
    #: What the worker holds already stays: this is one more rank that it could take.
    beside: bool = False


@dataclass(frozen=True, slots=True)
class AbortWorker:
    """Call Abort: the worker leaves every epoch below this one."""

    group_id: str
    epoch: int
    worker_id: str
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class JoinGroup:
    """Call JoinGroup on all members at once."""

    group_id: str
    epoch: int
    members: tuple[Member, ...]
    backend: str
    limits: EngineBounds


@dataclass(frozen=True, slots=True)
class LeaveEpoch:
    """The attempt to form this group is over, or its epoch is: nobody may meet in it any more."""

    group_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """Tell the router that the group serves."""

    group_id: str
    epoch: int
    leader: Member
    limits: EngineBounds


@dataclass(frozen=True, slots=True)
class AnnounceLost:
    """Tell the router that the group serves no more."""

    group_id: str
    epoch: int
    reason: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class DrainProcess:
    """Call Drain: the worker's process ends."""

    epoch: int
    worker_id: str
    incarnation: str
    reason: str


@dataclass(frozen=True, slots=True)
class DropWorker:
    """Nothing of this process is wanted any more: its calls and its connection end."""

    worker_id: str
    incarnation: str


Action = (
    CommitEpoch
    | RememberMembers
    | LoadShard
    | AbortWorker
    | JoinGroup
    | LeaveEpoch
    | AnnounceReady
    | AnnounceLost
    | DrainProcess
    | DropWorker
)

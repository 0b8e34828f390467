"""How many ranks a group has: fewer when nobody comes, more when enough are there again. Pure.

A group whose dead rank nobody replaces goes on with the largest smaller size that divides the model, for which
there are workers, and for which the ledger keeps the promise that streams were given: the same `max_model_len`.
It grows back, up to the size that was asked for, in a planned change of the epoch. Before that, the standbys load
what they will have in the larger group while the small one goes on serving, and must have been there for a while:
a worker that comes and goes must not stall the streams each time.

`group_life` applies what is decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .config import OrchestratorConfig
from .group_record import EngineBounds, GroupRecord, Member
from .placement import place
from .resource_allocator import ResourceAllocator
from .worker_record import ShardKey, WorkerRecord

#: However often it was in vain, growing is tried again after so many seconds.
GROW_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Smaller:
    """A size that a group can go on with; `limits` None: there is none, and the reason says why."""

    size: int = 0
    limits: EngineBounds | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What a group that is short would grow to."""

    size: int
    limits: EngineBounds
    #: By rank.
    members: tuple[Member, ...]
    #: By worker id: what a standby loads in advance.
    shards: dict[str, ShardKey]
    #: What has to be waited for; empty: it can grow now.
    waits_for: str

    @property
    def ready(self) -> bool:
        return not self.waits_for


class Resizing:
    """Decides; holds no state of its own."""

    def __init__(self, config: OrchestratorConfig, allocator: ResourceAllocator) -> None:
        self._config = config
        self._allocator = allocator

    def bounds(
        self,
        group: GroupRecord,
        size: int,
        workers: Sequence[WorkerRecord],
        everyone: Collection[WorkerRecord],
    ) -> tuple[EngineBounds | None, str]:
        """The bounds of `size` ranks on these workers, or why there are none.

        Bounds that the group has or had for this size stay, if these workers can keep them: what is free now says
        little while others hold weights. New ones for another size than the full one keep `max_model_len`.
        """
        shares = [self._allocator.share(worker, everyone) for worker in workers]
        known = group.limits if size == group.size else group.planned.get(size)
        changes = size != group.size or group.is_short
        kept = group.max_model_len if changes else None
        if known is not None and kept in (None, known.max_model_len) and self._allocator.holds(known, shares):
            return known, ""
        plan = self._allocator.plan(size, tuple(shares), kept)
        return plan.bounds, plan.refusal

    def smaller(
        self, group: GroupRecord, candidates: Collection[WorkerRecord], everyone: Collection[WorkerRecord]
    ) -> Smaller:
        """The largest size below the group's that the candidates can form.

        Args:
            group: it has no members now.
            candidates: workers that may be given a rank.
            everyone: all workers: they share devices.
        """
        refusals = []
        for size in self._allocator.smaller_sizes(group.size):
            members = place(group.group_id, size, candidates, group.previous).members
            if not members:
                continue
            limits, refusal = self._fits(group, size, _chosen(members, candidates), everyone)
            if limits is not None:
                return Smaller(size=size, limits=limits)
            refusals.append(f"{ranks_text(size)} can't take over: {refusal}")
        return Smaller(reason=refusals[0] if refusals else "")

    def growth(
        self, now_s: float, group: GroupRecord, everyone: Collection[WorkerRecord]
    ) -> tuple[Growth | None, str]:
        """What a group that has members, but fewer than it is meant to have, would grow to; or why it can't.

        The largest size that all who are there could form: those that come one after the other are waited for,
        so that streams stall once. No reason: nobody is there.
        """
        if not group.is_short or not group.members:
            return None, ""
        ids = [member.worker_id for member in group.members]
        candidates = [
            worker
            for worker in everyone
            if worker.placeable and not worker.draining and worker.group in (None, group.group_id)
        ]
        if not {worker.worker_id for worker in candidates}.issuperset(ids):
            return None, ""
        refusals = []
        for size in (group.full, *self._allocator.smaller_sizes(group.full)):
            if size <= group.size:
                break
            members = place(group.group_id, size, candidates, ids).members
            if not members:
                continue
            chosen = _chosen(members, candidates)
            limits, refusal = self._fits(group, size, chosen, everyone)
            if limits is None:
                refusals.append(f"{ranks_text(size)} can't take over: {refusal}")
                continue
            keys = {m.worker_id: ShardKey(m.rank, size, limits.max_model_len) for m in members}
            standbys = [worker for worker in chosen if worker.group is None]
            waits_for = next(filter(None, (self._waits_for(now_s, group, w, keys) for w in standbys)), "")
            shards = {worker.worker_id: keys[worker.worker_id] for worker in standbys}
            return Growth(size=size, limits=limits, members=members, shards=shards, waits_for=waits_for), ""
        return None, refusals[0] if refusals else ""

    def patience_s(self, group: GroupRecord, worker: WorkerRecord) -> float:
        """How long a standby must have been there, and the group have served, before it grows by this worker.

        Twice as long for every strike of the worker, and for every time that the group had to shrink again.
        """
        before = worker.strikes + max(0, group.shrinks - 1)
        return min(GROW_LIMIT_S, self._config.grow_after_s * 2.0 ** min(before, 32))

    def _waits_for(
        self, now_s: float, group: GroupRecord, standby: WorkerRecord, keys: dict[str, ShardKey]
    ) -> str:
        key = keys[standby.worker_id]
        if key not in [shard.key for shard in standby.shards]:
            return f"{standby.worker_id} loads rank {key.rank} of {key.size}"
        if standby.loading is not None:
            return f"{standby.worker_id} loads another shard"
        since_s = max(standby.registered_at_s, group.serving_since_s or now_s)
        patience_s = self.patience_s(group, standby)
        if now_s - since_s < patience_s:
            return f"{standby.worker_id} is to stay for {patience_s:g} s before it gets rank {key.rank}"
        return ""

    def _fits(
        self,
        group: GroupRecord,
        size: int,
        chosen: Sequence[WorkerRecord],
        everyone: Collection[WorkerRecord],
    ) -> tuple[EngineBounds | None, str]:
        """As `bounds`; but a change of size also needs somebody who can read what nobody holds."""
        shards = [shard for worker in chosen for shard in worker.shards[:1]]
        if len(shards) == len(chosen) and not any(shard.has_files for shard in shards):
            return None, "none of the workers can read the checkpoint"
        return self.bounds(group, size, chosen, everyone)


def who_is_gone(group: GroupRecord, candidates: Collection[WorkerRecord]) -> str:
    """ "rank 1 (worker-1)": ranks of the last epoch whose workers are not there."""
    here = {worker.worker_id for worker in candidates}
    gone = [f"rank {rank} ({name})" for rank, name in enumerate(group.previous) if name not in here]
    return ", ".join(gone)


def served_by(group: GroupRecord) -> str:
    """ "serves with 1 of 2 ranks: …"."""
    return f"serves with {group.size} of {ranks_text(group.full)}: {group.shortfall}"


def _chosen(members: Sequence[Member], candidates: Collection[WorkerRecord]) -> list[WorkerRecord]:
    """The workers in the order of their ranks."""
    by_id = {worker.worker_id: worker for worker in candidates}
    return [by_id[member.worker_id] for member in members]


def ranks_text(count: int) -> str:
    """ "1 rank", "2 ranks"."""
    return "1 rank" if count == 1 else f"{count} ranks"

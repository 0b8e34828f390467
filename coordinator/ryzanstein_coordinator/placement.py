"""Which worker gets which rank. Pure: the same workers are placed the same, in whatever order they came."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .group_record import Member
from .worker_record import ShardKey, WorkerRecord


@dataclass(frozen=True, slots=True)
class Placement:
    """Members in the order of their ranks, and why these; no members: why not."""

    members: tuple[Member, ...]
    reason: str


def place(
    group_id: str, size: int, candidates: Collection[WorkerRecord], previous: Sequence[str] = ()
) -> Placement:
    """Chooses `size` of the candidates and gives each a rank.

    Args:
        group_id: whose ranks they are.
        size: ranks of the group.
        candidates: workers that may be given a rank now; those of other groups are not among them.
        previous: worker ids of the last epoch, by rank.

    Somebody who can read the checkpoint serves, if what the others hold is not enough and such a worker is there.
    Who else serves: those that are not about to leave before those that are, then those with fewer strikes, those
    that belong to this group, those that hold the shard of a rank that nobody has yet, those that held a rank
    before, neighbours on one host. Which rank: the one whose shard a worker holds, then the one that its id
    held before, then what is left, in the order of hosts and ids.
    """
    kinds = Counter(worker.device.kind for worker in candidates)
    if not kinds or max(kinds.values()) < size:
        return Placement((), _too_few(size, candidates, previous))
    incumbents = Counter(worker.device.kind for worker in candidates if worker.group == group_id)
    # One kind of device per group. The group's own kind first, GPUs before CPUs.
    kind = max(
        (kind for kind in kinds if kinds[kind] >= size),
        key=lambda kind: (incumbents[kind], kind != "cpu", kind),
    )
    pool = [worker for worker in candidates if worker.device.kind == kind]
    chosen = _choose(group_id, size, pool, previous)
    ranks = _assign(size, chosen, previous)
    if not may_hold_all([ranks[rank] for rank in range(size)]) and (readers := _readers(pool)):
        first = _choose(group_id, 1, readers, previous)
        chosen = _choose(group_id, size, pool, previous, first)
        ranks = _assign(size, chosen, previous)
    members = tuple(Member(rank, ranks[rank].worker_id, ranks[rank].incarnation) for rank in range(size))
    return Placement(members, f"{size} of {len(candidates)} workers placed")


def may_hold_all(workers: Sequence[WorkerRecord]) -> bool:
    """Whether these ranks, in their order, may come to hold all weights: one of them may be able to read the
    checkpoint, for itself and the others, or each holds its own. Whoever never loaded has not said yet.
    """
    if any(_may_read(worker) for worker in workers):
        return True
    return all(
        any(s.loaded and (s.key.rank, s.key.size) == (rank, len(workers)) for s in worker.shards)
        for rank, worker in enumerate(workers)
    )


def likely_rank(size: int, spares: Collection[ShardKey], own: Collection[int] = ()) -> int:
    """The rank whose shard a spare should load: of those that it doesn't hold, the one that the fewest other
    spares hold, the lowest of those.
    """
    held = Counter(key.rank for key in spares if key.size == size)
    return min((rank for rank in range(size) if rank not in own), key=lambda rank: (held[rank], rank))


def backend_of(workers: Sequence[WorkerRecord]) -> str:
    """What the members of a group should communicate by: "shared_memory", "gloo" or "nccl"."""
    kinds = {worker.device.kind for worker in workers}
    hosts = {worker.host_id for worker in workers}
    if kinds == {"cpu"}:
        return "shared_memory" if len(hosts) == 1 else "gloo"
    devices = {(worker.host_id, worker.device.identity) for worker in workers}
    # NCCL refuses two ranks on one GPU.
    return "nccl" if len(devices) == len(workers) else "gloo"


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts "worker-10" behind "worker-2"."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text))


def _readers(pool: Sequence[WorkerRecord]) -> list[WorkerRecord]:
    """Those of the pool that can read the checkpoint; if there are none, those that have not said yet."""
    possible = [worker for worker in pool if _may_read(worker)]
    return [worker for worker in possible if worker.shards] or possible


def _may_read(worker: WorkerRecord) -> bool:
    return not worker.shards or any(shard.has_files for shard in worker.shards)


def _choose(
    group_id: str,
    size: int,
    pool: Sequence[WorkerRecord],
    previous: Sequence[str],
    first: Sequence[WorkerRecord] = (),
) -> list[WorkerRecord]:
    """`size` workers of the pool; `first` are among them."""
    chosen = list(first)
    rest = [worker for worker in pool if worker not in first]
    while len(chosen) < size:
        # Hosts of those already chosen, then hosts with most candidates: a group stays together where it can.
        near = Counter(worker.host_id for worker in chosen)
        crowd = Counter(worker.host_id for worker in rest)
        covered = {
            rank for worker in chosen for rank in _ranks_of(worker, size) if len(_ranks_of(worker, size)) == 1
        }
        best = min(
            rest,
            key=lambda worker: (
                worker.draining,
                worker.strikes,
                worker.group != group_id,
                _ranks_of(worker, size) <= covered,
                worker.worker_id not in previous,
                -near[worker.host_id],
                -min(crowd[worker.host_id], size - len(chosen)),
                worker.host_id,
                natural_key(worker.device.name),
                natural_key(worker.worker_id),
            ),
        )
        chosen.append(best)
        rest.remove(best)
    return chosen


def _assign(size: int, chosen: list[WorkerRecord], previous: Sequence[str]) -> dict[int, WorkerRecord]:
    ranks: dict[int, WorkerRecord] = {}
    left: list[WorkerRecord] = []
    # Those with one shard have no choice; a spare with several takes what they leave.
    for worker in sorted(chosen, key=lambda worker: len(_ranks_of(worker, size))):
        rank = min(_ranks_of(worker, size) - ranks.keys(), default=None)
        if rank is not None:
            ranks[rank] = worker
        else:
            left.append(worker)
    for worker in list(left):
        if worker.worker_id in previous:
            rank = previous.index(worker.worker_id)
            if rank < size and rank not in ranks:
                ranks[rank] = worker
                left.remove(worker)
    left.sort(
        key=lambda worker: (worker.host_id, natural_key(worker.device.name), natural_key(worker.worker_id))
    )
    free = [rank for rank in range(size) if rank not in ranks]
    ranks.update(zip(free, left, strict=True))
    return ranks


def _ranks_of(worker: WorkerRecord, size: int) -> set[int]:
    """The ranks whose shards it holds or loads."""
    return {key.rank for key in worker.keys if key.size == size}


def _too_few(size: int, candidates: Collection[WorkerRecord], previous: Sequence[str]) -> str:
    here = {worker.worker_id for worker in candidates}
    missing = [
        f"rank {rank} ({worker_id})"
        for rank, worker_id in enumerate(previous)
        if worker_id and worker_id not in here
    ]
    count = f"{len(candidates)} of {size} workers are ready"
    return (
        f"waiting for a replacement of {', '.join(missing)}: {count}"
        if missing
        else f"waiting for workers: {count}"
    )

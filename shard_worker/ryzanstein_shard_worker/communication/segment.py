"""How the ranks of one host come to share a segment: from nobody's file, and all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from torch._C._distributed_c10d import Store

from ..native.shared_memory import MAX_WORLD_SIZE, SegmentLayout, SharedSegment, shared_memory_available

#: Where the segment may come from, the best first. An anonymous file is opened through its owner's descriptor:
#: whoever is killed leaves nothing behind. The other has a name for a few milliseconds.
_MEDIA = ("memfd", "/dev/shm")  # noqa: S108 - no temporary file: it is unlinked while it is in use

#: Busy waiting pays while every rank has a core: what it waits for is usually microseconds away.
_SPIN_US, _YIELD_US = 50.0, 2000.0
#: With fewer cores the rank that is waited for may need the very core.
_CROWDED_SPIN_US, _CROWDED_YIELD_US = 2.0, 30.0


class SegmentError(Exception):
    """The ranks can't share memory; all of them found the same, and why is in the message."""


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What a rank tells the others before they decide."""

    pid: int
    native: bool
    #: Processors that it may run on.
    cores: tuple[int, ...]


def share_segment(store: Store, *, rank: int, world_size: int, name: str, timeout_s: float) -> SharedSegment:
    """Maps the group's segment on this rank, tuned, watching every other rank's process.

    All ranks decide from the same published facts, so they all return or all raise SegmentError. A store that
    fails (a member that never came) raises the store's own error.

    Args:
        store: of this attempt alone.
        name: for people who look at /proc; without "/".
        timeout_s: of every later wait in the segment.
    """
    facts = _exchange_facts(store, rank, world_size)
    refusal = why_not(facts)
    if refusal:
        raise SegmentError(refusal)
    layout = SegmentLayout(world_size)
    problems: list[str] = []
    for medium in _MEDIA:
        segment, problems = _try_medium(store, medium, rank, layout, facts, name)
        if segment is not None:
            spin_us, yield_us = waiting_times_us(facts)
            segment.tune(timeout_s=timeout_s, spin_us=spin_us, yield_us=yield_us)
            return segment
    raise SegmentError(problems[0])


def why_not(facts: list[RankFacts]) -> str:
    """Why these ranks can't share memory; empty if they may try."""
    if len(facts) > MAX_WORLD_SIZE:
        return f"{len(facts)} ranks, and a shared segment holds {MAX_WORLD_SIZE}"
    for rank, fact in enumerate(facts):
        if not fact.native:
            return f"rank {rank} has no native library"
    return ""


def waiting_times_us(facts: list[RankFacts]) -> tuple[float, float]:
    """→ (busy, then giving way) before a wait sleeps."""
    cores = {core for fact in facts for core in fact.cores}
    if len(cores) < len(facts):
        return _CROWDED_SPIN_US, _CROWDED_YIELD_US
    return _SPIN_US, _YIELD_US


def _exchange_facts(store: Store, rank: int, world_size: int) -> list[RankFacts]:
    mine = RankFacts(
        pid=os.getpid(), native=shared_memory_available(), cores=tuple(sorted(os.sched_getaffinity(0)))
    )
    store.set(f"facts/{rank}", json.dumps(asdict(mine)))
    told = [json.loads(store.get(f"facts/{r}")) for r in range(world_size)]
    return [RankFacts(fact["pid"], fact["native"], tuple(fact["cores"])) for fact in told]


def _try_medium(
    store: Store, medium: str, rank: int, layout: SegmentLayout, facts: list[RankFacts], name: str
) -> tuple[SharedSegment | None, list[str]]:
    """→ (segment, []) on all ranks, or (None, the ranks' problems) on all ranks."""
    where = f"segment/{medium}"
    with contextlib.ExitStack() as held:  # the file stays open, or named, until all have mapped it
        segment, problem = None, ""
        try:
            if rank == 0:
                fd, path = _create(medium, name, layout.total_bytes(), held)
                segment = SharedSegment(fd, rank, layout)
                store.set(where, json.dumps({"path": path, "inode": os.fstat(fd).st_ino}))
            else:
                told = json.loads(store.get(where))
                if told["path"]:
                    segment = _open(told["path"], told["inode"], rank, layout)
            if segment is not None:
                for peer, fact in enumerate(facts):
                    if peer != rank:
                        segment.watch(peer, fact.pid)
        except OSError as error:
            problem = f"rank {rank}: {error}"
            if rank == 0:
                store.set(where, json.dumps({"path": "", "inode": 0}))
        store.set(f"{where}/{rank}", problem)
        problems = [store.get(f"{where}/{r}").decode() for r in range(layout.world_size)]
    problems = [problem for problem in problems if problem]
    if problems and segment is not None:
        segment.close()
        segment = None
    return segment, problems


def _create(medium: str, name: str, size: int, held: contextlib.ExitStack) -> tuple[int, str]:
    """→ (descriptor, path for the others), both for as long as `held` is open."""
    if medium == "memfd":
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        held.callback(os.close, fd)
        path = f"/proc/{os.getpid()}/fd/{fd}"
    else:
        path = str(Path(medium) / name)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        held.callback(os.close, fd)
        held.callback(os.unlink, path)
    os.ftruncate(fd, size)
    return fd, path


def _open(path: str, inode: int, rank: int, layout: SegmentLayout) -> SharedSegment:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_ino != inode:
            raise FileNotFoundError(f"{path} is another process's file: the ranks don't see each other")
        return SharedSegment(fd, rank, layout)
    finally:
        os.close(fd)

"""How the ranks of one host come to share a segment: from nobody's file, and all of them or none."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import structlog

from ..native.shared_memory import MAX_WORLD_SIZE, SegmentLayout, SharedSegment, shared_memory_available

log = structlog.get_logger(__name__)

#: Where the segment may come from, the best first. An anonymous file is opened through its owner's descriptor:
#: whoever is killed leaves nothing behind. The other has a name for a few milliseconds.
_MEDIA = ("memfd", "/dev/shm")  # noqa: S108 - no temporary file: it is unlinked while it is in use

#: Busy waiting pays while every rank has a core: what it waits for is usually microseconds away.
_SPIN_US, _YIELD_US = 50.0, 2000.0
#: With fewer cores the rank that is waited for may need the very core.
_CROWDED_SPIN_US, _CROWDED_YIELD_US = 2.0, 30.0


class MeetingPlace(Protocol):
    """What the ranks tell each other through: keys and values, of this attempt alone."""

    def set(self, key: str, value: str, /) -> None:
        """Tells the others."""
        ...

    def get(self, key: str, /) -> bytes:
        """As soon as it is there."""
        ...

    def get_all(self, keys: Sequence[str], /) -> list[bytes]:
        """As soon as all are there."""
        ...


class SegmentError(Exception):
    """The ranks can't share memory; all of them found the same, and why is in the message."""


class _NoLibraryError(Exception):
    def __str__(self) -> str:
        return "no native library"


@dataclass(frozen=True, slots=True)
class Ack:
    """What a rank tells the others after it tried to map the segment."""

    pid: int
    #: Processors that it may run on.
    cores: tuple[int, ...]
    native: bool
    #: Why it has not mapped the segment; empty: it has.
    problem: str


def share_segment(
    store: MeetingPlace, *, rank: int, world_size: int, name: str, timeout_s: float
) -> SharedSegment:
    """Maps the group's segment on this rank, tuned, watching every other rank's process.

    All ranks decide from the same published answers, so they all return or all raise SegmentError. A store
    that fails (a member that never came) raises the store's own error.

    Args:
        store: of this attempt alone.
        name: for people who look at /proc; without "/".
        timeout_s: of every later wait in the segment.
    """
    if world_size > MAX_WORLD_SIZE:
        raise SegmentError(f"{world_size} ranks, and a shared segment holds {MAX_WORLD_SIZE}")
    layout = SegmentLayout(world_size)
    refusal = ""
    for medium in _MEDIA:
        segment, acks = _try_medium(store, medium, rank, layout, name)
        if segment is not None:
            spin_us, yield_us = waiting_times_us(acks)
            segment.tune(timeout_s=timeout_s, spin_us=spin_us, yield_us=yield_us)
            _watch_others(segment, rank, acks)
            return segment
        refusal = why_not(acks)
        if not all(ack.native for ack in acks):
            break
    raise SegmentError(refusal)


def why_not(acks: Sequence[Ack]) -> str:
    """Why these ranks don't share the segment; empty: all have mapped it."""
    for rank, ack in enumerate(acks):
        if ack.problem:
            return f"rank {rank}: {ack.problem}"
    return ""


def waiting_times_us(acks: Sequence[Ack]) -> tuple[float, float]:
    """→ (busy, then giving way) before a wait sleeps."""
    cores = {core for ack in acks for core in ack.cores}
    if len(cores) < len(acks):
        return _CROWDED_SPIN_US, _CROWDED_YIELD_US
    return _SPIN_US, _YIELD_US


def _try_medium(
    store: MeetingPlace, medium: str, rank: int, layout: SegmentLayout, name: str
) -> tuple[SharedSegment | None, list[Ack]]:
    """→ this rank's segment on all ranks or None on all ranks, and what all ranks said."""
    where = f"segment/{medium}"
    with contextlib.ExitStack() as held:  # the file stays open, or named, until all have mapped it
        segment, problem = None, ""
        try:
            if rank == 0:
                segment = _create(store, where, medium, layout, name, held)
            else:
                segment = _open(store, where, rank, layout)
        except (OSError, _NoLibraryError) as error:
            problem = str(error)
        try:
            acks = _exchange(store, where, rank, layout.world_size, problem)
        except BaseException:
            if segment is not None:
                segment.close()
            raise
    if segment is not None and why_not(acks):
        segment.close()
        segment = None
    return segment, acks


def _exchange(store: MeetingPlace, where: str, rank: int, world_size: int, problem: str) -> list[Ack]:
    mine = Ack(os.getpid(), tuple(sorted(os.sched_getaffinity(0))), shared_memory_available(), problem)
    store.set(f"{where}/{rank}", json.dumps(asdict(mine)))
    told = [json.loads(text) for text in store.get_all([f"{where}/{r}" for r in range(world_size)])]
    return [Ack(ack["pid"], tuple(ack["cores"]), ack["native"], ack["problem"]) for ack in told]


def _create(
    store: MeetingPlace,
    where: str,
    medium: str,
    layout: SegmentLayout,
    name: str,
    held: contextlib.ExitStack,
) -> SharedSegment:
    """On rank 0. The others hear of it in any case."""
    told = {"path": "", "inode": 0}
    try:
        if not shared_memory_available():
            raise _NoLibraryError
        if medium == "memfd":
            fd = os.memfd_create(name, os.MFD_CLOEXEC)
            held.callback(os.close, fd)
            path = f"/proc/{os.getpid()}/fd/{fd}"
        else:
            path = str(Path(medium) / name)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            held.callback(os.close, fd)
            held.callback(os.unlink, path)
        if medium == "memfd":
            os.ftruncate(fd, layout.total_bytes())
        else:
            # All of it now: where a full /dev/shm runs out of pages later, the kernel kills whoever touches one.
            os.posix_fallocate(fd, 0, layout.total_bytes())
        segment = SharedSegment(fd, 0, layout)
        told = {"path": path, "inode": os.fstat(fd).st_ino}
    finally:
        store.set(where, json.dumps(told))
    return segment


def _open(store: MeetingPlace, where: str, rank: int, layout: SegmentLayout) -> SharedSegment:
    if not shared_memory_available():
        raise _NoLibraryError
    told = json.loads(store.get(where))
    if not told["path"]:
        raise FileNotFoundError("rank 0 could not make one")
    fd = os.open(told["path"], os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_ino != told["inode"]:
            raise FileNotFoundError(f"{told['path']} is another file here: the ranks don't see each other")
        return SharedSegment(fd, rank, layout)
    finally:
        os.close(fd)


def _watch_others(segment: SharedSegment, rank: int, acks: Sequence[Ack]) -> None:
    for peer, ack in enumerate(acks):
        if peer != rank:
            try:
                segment.watch(peer, ack.pid)
            except OSError as error:  # it died just now, or /proc hides it: a wait's timeout will tell
                log.warning("peer_not_watched", rank=rank, peer=peer, reason=str(error))

"""The C functions over a shared segment: mapping it, collectives, the leader's ring of messages."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from .library import load_library

#: Mirrors enum rz_sum_dtype.
DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.bfloat16: 2,
    torch.float16: 3,
    torch.int32: 4,
    torch.int64: 5,
}
#: Ranks that one segment can hold (RZ_MAX_WORLD).
MAX_WORLD_SIZE = 64


class Verdict(IntEnum):
    """Why a group is broken; mirrors enum rz_verdict."""

    FINE = 0
    ABORTED = 1
    PEER_DEAD = 2
    PEER_LATE = 3
    DIVERGED = 4
    NON_FINITE = 5


@dataclass(frozen=True, slots=True)
class Ruling:
    """The first failure in a group, the same for all its ranks."""

    verdict: Verdict
    #: Who is at fault; with ABORTED, who left.
    peer: int
    #: The rank that saw it.
    reporter: int


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Sizes of a segment, the same on all ranks; powers of two."""

    world_size: int
    #: What one round of a collective carries. Two per rank: with the tensor they stay in the L2 cache.
    slot_bytes: int = 128 * 1024
    #: The leader may be so far ahead of the slowest rank.
    ring_bytes: int = 256 * 1024
    #: Per ordered pair of ranks; the kernel gives memory only to those that are used.
    pair_bytes: int = 256 * 1024

    def total_bytes(self) -> int:
        """Size of the file behind the segment."""
        size: int = _functions().rz_segment_bytes(
            self.world_size, self.slot_bytes, self.ring_bytes, self.pair_bytes
        )
        return size


class SharedSegment:
    """One rank's mapping of the group's segment. Operations return False when the group is broken.

    `ruling` says why. Not thread-safe, except `abort` and `ruling`; after `close` nothing may be called.
    """

    def __init__(self, fd: int, rank: int, layout: SegmentLayout) -> None:
        """Maps the file behind `fd`, which the caller may close. Rank 0 has to be first.

        Raises:
            OSError: it can't be mapped, or it is not this layout's segment.
        """
        self._c = _functions()
        self._group = self._c.rz_group_open(
            fd, rank, layout.world_size, layout.slot_bytes, layout.ring_bytes, layout.pair_bytes
        )
        if not self._group:
            number = ctypes.get_errno()
            what = "it is another group's" if number == errno.EPROTO else os.strerror(number)
            raise OSError(number, f"the shared segment can't be mapped: {what}")
        self._scratch = ctypes.create_string_buffer(4096)

    def tune(self, *, timeout_s: float, spin_us: float, yield_us: float) -> None:
        """How long a wait may be, how long of it busy, and how long then giving way before it sleeps."""
        self._c.rz_group_tune(self._group, int(timeout_s * 1e9), int(spin_us * 1e3), int(yield_us * 1e3))

    def watch(self, rank: int, pid: int) -> None:
        """From now on a wait for `rank` ends soon after its process does.

        Raises:
            OSError: there is no such process to be seen.
        """
        if self._c.rz_group_watch(self._group, rank, pid) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"rank {rank} (process {pid}) can't be watched: {os.strerror(number)}")

    def abort(self) -> None:
        """Breaks the group for all its ranks."""
        self._c.rz_group_abort(self._group)

    def ruling(self) -> Ruling:
        """Whether and why the group is broken."""
        word = self._c.rz_group_verdict(self._group)
        return Ruling(Verdict(word & 0xFF), word >> 8 & 0xFFF, word >> 20)

    def close(self) -> None:
        """Unmaps the segment."""
        self._c.rz_group_close(self._group)
        self._group = None

    def all_reduce(self, address: int, count: int, dtype: int) -> bool:
        """[count] elements in place."""
        return bool(self._c.rz_all_reduce(self._group, address, count, dtype) == 0)

    def all_gather(self, out: int, address: int, nbytes: int) -> bool:
        """[nbytes] → out [world, nbytes]."""
        return bool(self._c.rz_all_gather(self._group, out, address, nbytes) == 0)

    def reduce_scatter(self, out: int, address: int, count: int, dtype: int) -> bool:
        """[world, count] elements → out [count]."""
        return bool(self._c.rz_reduce_scatter(self._group, out, address, count, dtype) == 0)

    def broadcast(self, address: int, nbytes: int, source: int) -> bool:
        """[nbytes] in place."""
        return bool(self._c.rz_broadcast(self._group, address, nbytes, source) == 0)

    def send(self, address: int, nbytes: int, to: int) -> bool:
        """[nbytes] to one rank."""
        return bool(self._c.rz_send(self._group, address, nbytes, to) == 0)

    def receive(self, address: int, nbytes: int, source: int) -> bool:
        """[nbytes] from one rank."""
        return bool(self._c.rz_receive(self._group, address, nbytes, source) == 0)

    def barrier(self) -> bool:
        """All ranks."""
        return bool(self._c.rz_barrier(self._group) == 0)

    def ring_send(self, payload: bytes) -> bool:
        """On rank 0: a message to all others."""
        return bool(self._c.rz_ring_send(self._group, payload, len(payload)) == 0)

    def ring_receive(self, timeout_s: float) -> bytes | None:
        """On the others: the next message; None when the group is broken."""
        length = self._c.rz_ring_await(self._group, int(timeout_s * 1e9))
        if length < 0:
            return None
        if length > len(self._scratch):
            self._scratch = ctypes.create_string_buffer(length)
        if self._c.rz_ring_take(self._group, self._scratch, length) != 0:
            return None
        return ctypes.string_at(self._scratch, length)


def shared_memory_available() -> bool:
    """Whether this host has the native library."""
    return load_library() is not None


@functools.cache
def _functions() -> Any:
    library = load_library()
    if library is None:
        raise RuntimeError("the native library is not available: ask shared_memory_available() first")
    # A second handle of the same library: errno is kept only by calls of one that asks for it.
    c = ctypes.CDLL(library._name, use_errno=True)
    pointer, u32, u64, i32, i64 = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_uint64,
        ctypes.c_int32,
        ctypes.c_int64,
    )
    for name, result, arguments in (
        ("rz_segment_bytes", ctypes.c_size_t, [u32] * 4),
        ("rz_group_open", pointer, [ctypes.c_int, u32, u32, u32, u32, u32]),
        ("rz_group_tune", None, [pointer, i64, i64, i64]),
        ("rz_group_watch", ctypes.c_int, [pointer, u32, i32]),
        ("rz_group_abort", None, [pointer]),
        ("rz_group_verdict", u32, [pointer]),
        ("rz_group_close", None, [pointer]),
        ("rz_all_reduce", ctypes.c_int, [pointer, pointer, u64, i32]),
        ("rz_all_gather", ctypes.c_int, [pointer, pointer, pointer, u64]),
        ("rz_reduce_scatter", ctypes.c_int, [pointer, pointer, pointer, u64, i32]),
        ("rz_broadcast", ctypes.c_int, [pointer, pointer, u64, u32]),
        ("rz_send", ctypes.c_int, [pointer, pointer, u64, u32]),
        ("rz_receive", ctypes.c_int, [pointer, pointer, u64, u32]),
        ("rz_barrier", ctypes.c_int, [pointer]),
        ("rz_ring_send", ctypes.c_int, [pointer, ctypes.c_char_p, u32]),
        ("rz_ring_await", i64, [pointer, i64]),
        ("rz_ring_take", ctypes.c_int, [pointer, pointer, u32]),
    ):
        function = getattr(c, name)
        function.restype = result
        function.argtypes = arguments
    return c

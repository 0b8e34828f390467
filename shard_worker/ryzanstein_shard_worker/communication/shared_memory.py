"""The group within one host's memory: collectives in microseconds, deaths noticed in milliseconds."""

from __future__ import annotations

import threading
from typing import NoReturn

from torch import Tensor

from ..native.shared_memory import DTYPES, Ruling, SharedSegment, Verdict
from .backend import BackendHandler, non_finite_reason
from .errors import CommunicationError
from .step_channel import StepChannel


class SharedGroup:
    """One rank's part in a segment that the handler and the step channel use together.

    The engine thread makes the calls; `abort` may come from any thread, also while the last user closes.
    """

    def __init__(self, segment: SharedSegment, *, rank: int, world_size: int, timeout_s: float) -> None:
        self.rank = rank
        self.world_size = world_size
        self.timeout_s = timeout_s
        self._segment = segment
        self._lock = threading.Lock()
        self._users = 0
        self._aborted = ""

    def acquire(self) -> SharedSegment:
        """For one more user, who releases it."""
        with self._lock:
            self._users += 1
            return self._segment

    def release(self) -> None:
        """The last user's unmaps the segment."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._segment.close()

    def abort(self, reason: str) -> None:
        """Breaks the group for all ranks; nothing once it is unmapped."""
        with self._lock:
            self._aborted = self._aborted or reason
            if self._users:
                self._segment.abort()

    def explain(self, waited_s: float | None = None) -> tuple[str, int | None]:
        """Why the group is broken, and the rank at fault."""
        ruling = self._segment.ruling()
        if ruling.verdict is Verdict.ABORTED and ruling.reporter == self.rank and self._aborted:
            return f"aborted: {self._aborted}", None
        return describe(ruling, self.rank, self.timeout_s if waited_s is None else waited_s)


def describe(ruling: Ruling, rank: int, timeout_s: float) -> tuple[str, int | None]:
    """→ (reason, peer at fault), as rank `rank` tells it."""
    seen = "" if ruling.reporter == rank else f", as rank {ruling.reporter} saw"
    peer = ruling.peer
    match ruling.verdict:
        case Verdict.PEER_DEAD:
            return f"the process of rank {peer} is gone{seen}", peer
        case Verdict.PEER_LATE:
            return f"no answer from rank {peer} within {timeout_s:g} s{seen}", peer
        case Verdict.DIVERGED:
            return f"rank {peer} is in another operation, or has a tensor of another size{seen}", peer
        case Verdict.NON_FINITE:
            return non_finite_reason(peer), peer
        case Verdict.ABORTED:
            # It left for a reason of its own, or was told to: no sign of who is at fault.
            return f"rank {ruling.reporter} left the group", None
        case Verdict.FINE:
            raise AssertionError("an operation failed in a group that is not broken")


class SharedMemoryHandler(BackendHandler):
    """Collectives over a `SharedGroup`; CPU tensors only."""

    def __init__(self, group: SharedGroup) -> None:
        super().__init__(
            rank=group.rank, world_size=group.world_size, backend="shared_memory", timeout_s=group.timeout_s
        )
        self._group = group
        self._segment = group.acquire()
        self._closed = False

    def _all_reduce(self, tensor: Tensor) -> None:
        if not self._segment.all_reduce(tensor.data_ptr(), tensor.numel(), DTYPES[tensor.dtype]):
            self._fail_as_ruled()

    def _all_gather(self, out: Tensor, tensor: Tensor) -> None:
        if not self._segment.all_gather(out.data_ptr(), tensor.data_ptr(), tensor.nbytes):
            self._fail_as_ruled()

    def _reduce_scatter(self, out: Tensor, tensor: Tensor) -> None:
        if not self._segment.reduce_scatter(
            out.data_ptr(), tensor.data_ptr(), out.numel(), DTYPES[tensor.dtype]
        ):
            self._fail_as_ruled()

    def _broadcast(self, tensor: Tensor, source: int) -> None:
        if not self._segment.broadcast(tensor.data_ptr(), tensor.nbytes, source):
            self._fail_as_ruled()

    def _send(self, tensor: Tensor, to: int) -> None:
        if not self._segment.send(tensor.data_ptr(), tensor.nbytes, to):
            self._fail_as_ruled()

    def _receive(self, tensor: Tensor, source: int) -> None:
        if not self._segment.receive(tensor.data_ptr(), tensor.nbytes, source):
            self._fail_as_ruled()

    def _barrier(self) -> None:
        if not self._segment.barrier():
            self._fail_as_ruled()

    def _abort(self, reason: str) -> None:
        self._group.abort(reason)

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._group.release()

    def _fail_as_ruled(self) -> NoReturn:
        self._fail(*self._group.explain())


class SharedMemoryStepChannel(StepChannel):
    """The leader's messages through the ring of a `SharedGroup`; a sleeping rank wakes in microseconds."""

    def __init__(self, group: SharedGroup) -> None:
        self.rank = group.rank
        self.world_size = group.world_size
        self._group = group
        self._segment = group.acquire()
        self._closed = False
        self._sequence = 0
        self._broken: tuple[str, int | None] | None = None

    def send(self, payload: bytes) -> None:
        self._sequence += 1
        if self._broken is not None or not self._segment.ring_send(payload):
            self._fail("step_channel.send", None)

    def receive(self, timeout_s: float) -> bytes:
        self._sequence += 1
        payload = None if self._broken is not None else self._segment.ring_receive(timeout_s)
        if payload is None:
            self._fail("step_channel.receive", timeout_s)
        return payload

    def abort(self, reason: str) -> None:
        if self._broken is None:
            self._broken = (f"aborted: {reason}", None)
        self._group.abort(reason)

    def close(self) -> None:
        if self._broken is None:
            self._broken = ("the group is closed", None)
        if not self._closed:
            self._closed = True
            self._group.release()

    def _fail(self, operation: str, waited_s: float | None) -> NoReturn:
        if self._broken is None:
            self._broken = self._group.explain(waited_s)
        reason, peer = self._broken
        raise CommunicationError(
            rank=self.rank, peer=peer, operation=operation, sequence=self._sequence, reason=reason
        )

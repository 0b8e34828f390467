"""How the ranks of an epoch find each other: torch's key-value store, kept by the coordinator, over gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
from torch._C._distributed_c10d import Store

from ryzanstein.v1 import cluster_pb2, cluster_pb2_grpc


class RendezvousError(Exception):
    """The ranks could not find each other; the message says why."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to form one epoch of a group."""

    group_id: str
    epoch: int
    nonce: str


class CoordinatorStore(Store):
    """`torch.distributed.Store` over the coordinator's RendezvousService.

    No extra port and no torch in the coordinator; a rank of another epoch is refused there. torch calls the
    methods from C++, under names that differ in part from those of its Python interface; both are here. Keep a
    reference for as long as a process group is being formed over it: torch keeps only the C++ half alive.

    While the group is being formed the store has one deadline for all of its calls together; `formed` gives
    each later call a time of its own (NCCL asks again when it needs another communicator). `cancel` ends the
    call that another thread is blocked in, and every later one.

    Every method raises RendezvousError.
    """

    def __init__(self, channel: grpc.Channel, attempt: Attempt, *, deadline: float) -> None:
        """
        Args:
            channel: to the coordinator; stays the caller's.
            deadline: on time.monotonic's clock.
        """
        super().__init__()
        self._stub = cluster_pb2_grpc.RendezvousServiceStub(channel)
        self._attempt = attempt
        self._key = cluster_pb2.RendezvousKey(
            group_id=attempt.group_id, epoch=attempt.epoch, nonce=attempt.nonce
        )
        self._deadline = deadline
        self._timeout_s: float | None = None
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._cancelled: str | None = None

    def cancel(self, reason: str) -> None:
        """From any thread."""
        with self._lock:
            self._cancelled = self._cancelled or reason
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def formed(self, timeout_s: float) -> None:
        """From now on every call may take `timeout_s`."""
        self._timeout_s = timeout_s

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled is not None

    def remaining_s(self) -> float:
        """What a call may take now; not negative."""
        if self._timeout_s is not None:
            return self._timeout_s
        return max(self._deadline - time.monotonic(), 0.0)

    def set(self, key: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else value
        request = cluster_pb2.SetValueRequest(rendezvous=self._key, key=key, value=data)
        self._call(self._stub.SetValue, request, f"set {key}")

    def get(self, key: str) -> bytes:
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[str], timeout_s: float | None = None) -> list[bytes]:
        """The values of all keys, in their order, as soon as they are there."""
        request = cluster_pb2.WaitForValuesRequest(rendezvous=self._key, keys=keys)
        what = f"wait for {', '.join(keys)}"
        return list(self._call(self._stub.WaitForValues, request, what, timeout_s).values)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        self.get_all(keys, None if timeout is None else timeout.total_seconds())

    def add(self, key: str, value: int) -> int:
        request = cluster_pb2.AddToValueRequest(rendezvous=self._key, key=key, amount=value)
        return int(self._call(self._stub.AddToValue, request, f"add to {key}").value)

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        request = cluster_pb2.CompareSetValueRequest(
            rendezvous=self._key,
            key=key,
            expected=expected.encode() if isinstance(expected, str) else expected,
            desired=desired.encode() if isinstance(desired, str) else desired,
        )
        return bytes(self._call(self._stub.CompareSetValue, request, f"compare and set {key}").value)

    def check(self, keys: list[str]) -> bool:
        request = cluster_pb2.CheckValuesRequest(rendezvous=self._key, keys=keys)
        return bool(self._call(self._stub.CheckValues, request, f"check {', '.join(keys)}").present)

    def delete_key(self, key: str) -> bool:
        request = cluster_pb2.DeleteValueRequest(rendezvous=self._key, key=key)
        return bool(self._call(self._stub.DeleteValue, request, f"delete {key}").deleted)

    deleteKey = delete_key  # noqa: N815 - what C++ looks for

    def clone(self) -> CoordinatorStore:
        """torch wants one where another thread is going to use it; this one may be used by several."""
        return self

    def _call(
        self,
        method: Any,
        request: Any,
        what: str,
        timeout_s: float | None = None,
    ) -> Any:
        """One call, within what is left of the time."""
        remaining_s = self.remaining_s()
        limit_s = remaining_s if timeout_s is None else min(timeout_s, remaining_s)
        with self._lock:
            if self._cancelled is not None:
                raise RendezvousError(f"can't {what}: {self._cancelled}")
            if limit_s <= 0:
                raise RendezvousError(f"the time to form epoch {self._attempt.epoch} is over ({what})")
            call = method.future(request, timeout=limit_s)
            self._calls.add(call)
        try:
            return call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            problem = self._describe(error, what, limit_s)
        finally:
            with self._lock:
                self._calls.discard(call)
        # Not in the except clause: gRPC's error would hold the frames of whoever called, sockets of gloo and all.
        raise RendezvousError(problem)

    def _describe(self, error: Exception, what: str, limit_s: float) -> str:
        where = f"the rendezvous of epoch {self._attempt.epoch}"
        if self._cancelled is not None:
            return f"{where}: can't {what}: {self._cancelled}"
        if isinstance(error, grpc.Call):
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"{where}: nobody came within {limit_s:.1f} s ({what})"
            return f"{where}: can't {what}: {error.code().name}: {error.details()}"
        return f"{where}: can't {what}: {error}"

"""Where the ranks that form a group find each other: a key-value store in the coordinator's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from ryzanstein.v1 import cluster_pb2, cluster_pb2_grpc
from ryzanstein.wire import StatusError, invalid_argument, stale_epoch

Context = grpc.aio.ServicerContext[Any, Any]

#: Of one attempt. 64 ranks that form two gloo groups and agree on a backend leave about 400 keys and 200 KB.
MAX_KEYS = 4096
MAX_BYTES = 4 * 1024 * 1024
#: A reply carries an int64.
_COUNTER_END = 2**63


@dataclass(slots=True)
class _Attempt:
    """What the ranks of one attempt have told each other."""

    epoch: int
    nonce: str
    values: dict[str, bytes] = field(default_factory=dict)
    size_bytes: int = 0
    #: Resolved, and replaced, with every change.
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def signal(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class RendezvousStore:
    """One attempt per group; opening the next one, or closing, ends it and tells whoever waits in it.

    Lives on one event loop. Every method that takes a key raises StatusError: FAILED_PRECONDITION when the
    caller's attempt is over, RESOURCE_EXHAUSTED when it has stored more than any group needs.
    """

    def __init__(self) -> None:
        self._attempts: dict[str, _Attempt] = {}

    def open(self, group_id: str, epoch: int, nonce: str) -> None:
        """From now on only this attempt of the group is served."""
        self.close(group_id)
        self._attempts[group_id] = _Attempt(epoch, nonce)

    def close(self, group_id: str) -> None:
        """No attempt of this group is served; whoever waits is told so."""
        attempt = self._attempts.pop(group_id, None)
        if attempt is not None:
            attempt.signal()

    def set_value(self, where: cluster_pb2.RendezvousKey, key: str, value: bytes) -> None:
        """Sets a key; waiters for it go on."""
        self._put(self._find(where), key, value)

    async def wait_for_values(self, where: cluster_pb2.RendezvousKey, keys: Sequence[str]) -> list[bytes]:
        """The keys' values, in their order, as soon as all are there. The caller's deadline ends the wait."""
        while True:
            attempt = self._find(where)
            if all(key in attempt.values for key in keys):
                return [attempt.values[key] for key in keys]
            await attempt.changed.wait()

    def add_to_value(self, where: cluster_pb2.RendezvousKey, key: str, amount: int) -> int:
        """A counter, from 0, kept as decimal text; returns its new value."""
        attempt = self._find(where)
        try:
            value = int(attempt.values.get(key, b"0")) + amount
        except ValueError:
            raise invalid_argument(f"rendezvous key {key!r} does not hold a number") from None
        if not -_COUNTER_END <= value < _COUNTER_END:
            raise invalid_argument(f"rendezvous key {key!r} can't count beyond 64 bits: it would be {value}")
        self._put(attempt, key, str(value).encode())
        return value

    def compare_set_value(
        self, where: cluster_pb2.RendezvousKey, key: str, expected: bytes, desired: bytes
    ) -> bytes:
        """Sets the key if it holds `expected` (empty: also if it is not there); returns what it holds then.

        As torch's TCPStore does: `expected` when there is no such key and one was expected.
        """
        attempt = self._find(where)
        current = attempt.values.get(key)
        if current is None and expected:
            return expected
        if current is not None and current != expected:
            return current
        self._put(attempt, key, desired)
        return desired

    def check_values(self, where: cluster_pb2.RendezvousKey, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        values = self._find(where).values
        return all(key in values for key in keys)

    def delete_value(self, where: cluster_pb2.RendezvousKey, key: str) -> bool:
        """Forgets a key; False when it was not there."""
        attempt = self._find(where)
        value = attempt.values.pop(key, None)
        if value is None:
            return False
        attempt.size_bytes -= len(key) + len(value)
        return True

    def _find(self, where: cluster_pb2.RendezvousKey) -> _Attempt:
        attempt = self._attempts.get(where.group_id)
        if attempt is None:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION, f"group {where.group_id!r} is not being formed"
            )
        if attempt.epoch != where.epoch:
            raise stale_epoch(where.epoch, attempt.epoch)
        if attempt.nonce != where.nonce:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION, f"this attempt to form epoch {where.epoch} is over"
            )
        return attempt

    def _put(self, attempt: _Attempt, key: str, value: bytes) -> None:
        old = attempt.values.get(key)
        grown = len(value) - len(old) if old is not None else len(key) + len(value)
        if attempt.size_bytes + grown > MAX_BYTES or (old is None and len(attempt.values) >= MAX_KEYS):
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the rendezvous of epoch {attempt.epoch} holds more than {MAX_KEYS} keys or {MAX_BYTES} bytes",
            )
        attempt.values[key] = value
        attempt.size_bytes += grown
        attempt.signal()


class RendezvousServicer(cluster_pb2_grpc.RendezvousServiceServicer):
    """Decode, one call, encode."""

    def __init__(self, store: RendezvousStore) -> None:
        self._store = store

    async def SetValue(  # noqa: N802 - the names are the protocol's
        self, request: cluster_pb2.SetValueRequest, context: Context
    ) -> cluster_pb2.SetValueResponse:
        self._store.set_value(request.rendezvous, request.key, request.value)
        return cluster_pb2.SetValueResponse(epoch=request.rendezvous.epoch)

    async def WaitForValues(  # noqa: N802
        self, request: cluster_pb2.WaitForValuesRequest, context: Context
    ) -> cluster_pb2.WaitForValuesResponse:
        values = await self._store.wait_for_values(request.rendezvous, request.keys)
        return cluster_pb2.WaitForValuesResponse(epoch=request.rendezvous.epoch, values=values)

    async def AddToValue(  # noqa: N802
        self, request: cluster_pb2.AddToValueRequest, context: Context
    ) -> cluster_pb2.AddToValueResponse:
        value = self._store.add_to_value(request.rendezvous, request.key, request.amount)
        return cluster_pb2.AddToValueResponse(epoch=request.rendezvous.epoch, value=value)

    async def CompareSetValue(  # noqa: N802
        self, request: cluster_pb2.CompareSetValueRequest, context: Context
    ) -> cluster_pb2.CompareSetValueResponse:
        value = self._store.compare_set_value(
            request.rendezvous, request.key, request.expected, request.desired
        )
        return cluster_pb2.CompareSetValueResponse(epoch=request.rendezvous.epoch, value=value)

    async def CheckValues(  # noqa: N802
        self, request: cluster_pb2.CheckValuesRequest, context: Context
    ) -> cluster_pb2.CheckValuesResponse:
        present = self._store.check_values(request.rendezvous, request.keys)
        return cluster_pb2.CheckValuesResponse(epoch=request.rendezvous.epoch, present=present)

    async def DeleteValue(  # noqa: N802
        self, request: cluster_pb2.DeleteValueRequest, context: Context
    ) -> cluster_pb2.DeleteValueResponse:
        deleted = self._store.delete_value(request.rendezvous, request.key)
        return cluster_pb2.DeleteValueResponse(epoch=request.rendezvous.epoch, deleted=deleted)

"""The coordinator's connections to its workers: one channel per process, every call with a deadline."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc

from ryzanstein.v1 import shard_worker_pb2, shard_worker_pb2_grpc
from ryzanstein.wire import CHANNEL_OPTIONS

from .worker_record import WorkerRecord

T = TypeVar("T")


#: Drain only tells the worker; it answers at once.
DRAIN_TIMEOUT_S = 2.0


class Lines(Protocol):
    """How workers are reached."""

    def connect(self, worker: WorkerRecord) -> grpc.aio.Channel:
        """A channel to a worker. Raises StatusError: there is no way to this one."""

    def stub_channel(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        """What a stub is made with: the channel, or something that adds to each of its calls."""

    def generation(self) -> int:
        """Grows when a channel that was made before should be made again."""


class PlainLines:
    """Without encryption and proof."""

    def connect(self, worker: WorkerRecord) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(worker.address, options=CHANNEL_OPTIONS)

    def stub_channel(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        return channel

    def generation(self) -> int:
        return 0


class CallError(Exception):
    """A call to a worker failed. `code` is its status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def never_works(self) -> bool:
        """Asking this process again can't help: it was told something that it can't do."""
        return self.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)

    @property
    def own_fault(self) -> bool:
        """The worker failed by itself; otherwise it, or a peer that it waited for, could not be reached."""
        return self.code not in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.ABORTED,
        )


@dataclass(frozen=True, slots=True)
class WorkerConnection:
    """One process of a worker. Every method raises CallError."""

    worker_id: str
    incarnation: str
    address: str
    #: Of the `Lines` that it was made by.
    generation: int
    channel: grpc.aio.Channel
    stub: shard_worker_pb2_grpc.ShardWorkerServiceAsyncStub

    async def load_shard(
        self, request: shard_worker_pb2.LoadShardRequest, timeout_s: float
    ) -> shard_worker_pb2.LoadShardResponse:
        return await _call(self.stub.LoadShard(request, timeout=timeout_s), self.address)

    async def join_group(
        self, request: shard_worker_pb2.JoinGroupRequest, timeout_s: float
    ) -> shard_worker_pb2.JoinGroupResponse:
        return await _call(self.stub.JoinGroup(request, timeout=timeout_s), self.address)

    async def abort(
        self, request: shard_worker_pb2.AbortRequest, timeout_s: float
    ) -> shard_worker_pb2.AbortResponse:
        return await _call(self.stub.Abort(request, timeout=timeout_s), self.address)

    async def drain(self, request: shard_worker_pb2.DrainRequest) -> shard_worker_pb2.DrainResponse:
        return await _call(self.stub.Drain(request, timeout=DRAIN_TIMEOUT_S), self.address)


class Workers:
    """All connections, by worker id. A new process of a worker takes the place of the old one."""

    def __init__(self, lines: Lines | None = None) -> None:
        self._lines = lines or PlainLines()
        self._connections: dict[str, WorkerConnection] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def open(self, worker: WorkerRecord) -> None:
        """Connects to the worker's process, unless that is done already. Returns at once.

        Raises:
            StatusError: there is no way to this worker.
        """
        known = self._connections.get(worker.worker_id)
        identity = (worker.incarnation, worker.address, self._lines.generation())
        if known is not None and (known.incarnation, known.address, known.generation) == identity:
            return
        channel = self._lines.connect(worker)
        if known is not None:
            self.drop(worker.worker_id, known.incarnation)
        channel.get_state(try_to_connect=True)  # the first call in an emergency must not wait for it
        stub: shard_worker_pb2_grpc.ShardWorkerServiceAsyncStub
        stub = shard_worker_pb2_grpc.ShardWorkerServiceStub(self._lines.stub_channel(channel))
        self._connections[worker.worker_id] = WorkerConnection(worker.worker_id, *identity, channel, stub)

    def of(self, worker_id: str, incarnation: str) -> WorkerConnection | None:
        """The connection to just this process."""
        connection = self._connections.get(worker_id)
        return connection if connection is not None and connection.incarnation == incarnation else None

    def drop(self, worker_id: str, incarnation: str) -> None:
        """Closes the connection to this process; its calls end as cancelled."""
        connection = self.of(worker_id, incarnation)
        if connection is not None:
            del self._connections[worker_id]
            task = asyncio.create_task(connection.channel.close(), name=f"close-{worker_id}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes all connections and waits until they are."""
        for connection in list(self._connections.values()):
            self.drop(connection.worker_id, connection.incarnation)
        await asyncio.gather(*self._closing)


async def _call(call: grpc.aio.UnaryUnaryCall[Any, T], address: str) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        detail = error.details() or "no details"
        raise CallError(error.code(), f"{error.code().name} from {address}: {detail}") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Not this task is cancelled: its channel was closed, because the process is gone.
        raise CallError(grpc.StatusCode.CANCELLED, f"the connection to {address} was closed") from None

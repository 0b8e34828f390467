"""The Execute stream: the coordinator's end as `GroupStream` uses it, and the leader's end as `service` serves it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

import grpc
from grpc.aio import Metadata

from ryzanstein.v1.shard_worker_pb2 import ExecuteRequest, ExecuteResponse
from ryzanstein.wire import EPOCH_KEY

from .network import Connection

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .group_run import GroupRun
    from .worker import Worker


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, Metadata(), Metadata(), details)


class Stub:
    """All that the request path needs of a worker's stub."""

    def __init__(self, coordinator: Coordinator, worker: Worker | None) -> None:
        self._coordinator = coordinator
        self._worker = worker

    def Execute(self) -> ExecuteCall:  # noqa: N802 - the name is the protocol's
        return ExecuteCall(self._coordinator, self._worker)


class ExecuteCall:
    """One stream. `read`, `write` and `cancel` are the coordinator's; `serve` and what is below the leader's."""

    def __init__(self, coordinator: Coordinator, worker: Worker | None) -> None:
        self._coordinator = coordinator
        self._loop = coordinator.loop
        self._arrived: deque[ExecuteResponse] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        #: The leader has taken it; what gRPC gives before anything else, and is empty for a call that failed.
        self._metadata: Metadata | None = None
        self._worker = worker
        #: The leader's: the run whose inbox it feeds, and the sequences that have not ended.
        self.run: GroupRun | None = None
        self._sequences: set[int] = set()
        self._served = False
        self._connection: Connection | None = None
        channel = None if worker is None else coordinator.channels.get(worker)
        if worker is None or channel is None or not worker.reachable(coordinator):
            world = coordinator.world
            world.timeline.after(
                0.001, lambda: self._failed(grpc.StatusCode.UNAVAILABLE, "connection refused")
            )
            return
        self._connection = coordinator.world.connect(
            coordinator,
            worker,
            on_end_near=lambda: self._failed(grpc.StatusCode.UNAVAILABLE, "the connection is broken"),
            on_end_far=self._left,
            lanes=channel.lanes,
        )
        channel.streams[self._connection] = None
        self._connection.to_far(lambda: self._serve(worker))

    # --- the coordinator's end

    async def initial_metadata(self) -> Metadata:
        while self._metadata is None and self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._metadata or Metadata()

    async def read(self) -> Any:
        while not self._arrived:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._arrived.popleft()

    async def write(self, request: ExecuteRequest) -> None:
        if self._error is not None or self._connection is None:
            raise self._error or rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused")
        self._connection.to_far(lambda: self._command(request))

    def cancel(self) -> bool:
        self._close_channel(asyncio.CancelledError())
        return True

    def closed_by_us(self) -> None:
        """The coordinator closed its channel to the worker."""
        self._close_channel(asyncio.CancelledError())

    def _close_channel(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        if self._connection is not None:
            self._connection.close(self._coordinator)

    def _failed(self, code: grpc.StatusCode, details: str) -> None:
        if self._error is None:
            self._error = rpc_error(code, details)
        self._wake()

    def _taken(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._wake()

    def _receive(self, response: ExecuteResponse) -> None:
        self._arrived.append(response)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._loop.run_ready()

    # --- the leader's end

    def _serve(self, worker: Worker) -> None:
        if worker.deaf:
            return
        run = worker.run
        if run is None or run.leader is not worker:
            self._refuse(grpc.StatusCode.FAILED_PRECONDITION, "this worker is not the leader of a group")
            return
        if worker.outputs is not None:
            worker.outputs.over()  # the coordinator has opened another one: the one before is dead
        worker.outputs, self.run, self._served = self, run, True
        epoch = str(run.epoch)
        if self._connection is not None:
            self._connection.to_near(lambda: self._taken(Metadata((EPOCH_KEY, epoch))))

    def _command(self, message: ExecuteRequest) -> None:
        run = self.run
        if run is None:
            return
        if message.epoch != run.epoch:
            self._end_serving()
            self._refuse(grpc.StatusCode.FAILED_PRECONDITION, f"epoch {message.epoch} is not {run.epoch}")
        elif message.HasField("submit"):
            self._sequences.add(message.submit.sequence_id)
            run.inbox.submit(message.submit)
            run.poke()
        else:
            self._sequences.discard(message.cancel.sequence_id)
            run.inbox.cancel(message.cancel.sequence_id)
            run.poke()

    def publish(self, response: ExecuteResponse) -> None:
        """What a step brought."""
        for output in response.outputs:
            if output.finish_reason:
                self._sequences.discard(output.sequence_id)
        if self._connection is not None:
            self._connection.to_near(lambda: self._receive(response))

    def lose_connection(self) -> None:
        """The network breaks just this one."""
        if self._connection is not None:
            self._connection.reset()

    def over(self) -> None:
        """The leader's epoch is over, or a newer stream was opened."""
        if self._served:
            self._end_serving()
            self._refuse(grpc.StatusCode.UNAVAILABLE, "the epoch is over on this worker")

    def _left(self) -> None:
        """The coordinator is gone, or has ended it."""
        if self._served:
            self._end_serving()

    def _end_serving(self) -> None:
        """Nobody listens any more: the blocks are free at the next step."""
        run, worker = self.run, self._worker
        self.run, self._served = None, False
        if worker is not None and worker.outputs is self:
            worker.outputs = None
        if run is not None:
            for sequence_id in self._sequences:
                run.inbox.cancel(sequence_id)
            if self._sequences:
                run.poke()
        self._sequences.clear()

    def _refuse(self, code: grpc.StatusCode, details: str) -> None:
        if self._connection is not None:
            self._connection.to_near(lambda: self._failed(code, details))

"""ShardWorkerService: what the coordinator may ask of a worker. Decode, one call on the engine, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from ryzanstein.model_plan import ModelError
from ryzanstein.v1 import shard_worker_pb2, shard_worker_pb2_grpc
from ryzanstein.wire import EPOCH_KEY, EXECUTE_BEAT_S, StatusError, invalid_argument, stale_epoch, unavailable

from .checkpoint import InitializationError
from .communication import CommunicationError
from .engine import Engine, EngineStoppedError
from .memory_errors import is_out_of_memory

Context = grpc.aio.ServicerContext[Any, Any]
#: What steps brought, in order; None ends the stream.
_Outputs = asyncio.Queue[shard_worker_pb2.ExecuteResponse | None]


class ShardWorkerServicer(shard_worker_pb2_grpc.ShardWorkerServiceServicer):
    """Thin: epochs are checked here, everything else happens in the engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_drain: Callable[[str], None],
        on_stuck: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`on_drain(reason)` begins the orderly end of this process; `on_stuck(reason)` is told of an engine that does
        not leave its group."""
        self._engine = engine
        self._on_drain = on_drain
        self._on_stuck = on_stuck
        self._leaving: asyncio.Task[int] | None = None
        self._epoch = 0
        self._outputs: _Outputs | None = None

    @property
    def epoch(self) -> int:
        """The highest epoch that the coordinator named."""
        return self._epoch

    def publish(self, response: shard_worker_pb2.ExecuteResponse) -> None:
        """Takes what a step brought; call in the loop's thread. Without a listener it is dropped."""
        if self._outputs is not None:
            self._outputs.put_nowait(response)

    def group_changed(self) -> None:
        """Ends the Execute stream of a group that this worker has left; call in the loop's thread."""
        if self._outputs is not None and self._engine.inbox is None:
            self._outputs.put_nowait(None)

    async def LoadShard(  # noqa: N802 - the name is the protocol's
        self, request: shard_worker_pb2.LoadShardRequest, context: Context
    ) -> shard_worker_pb2.LoadShardResponse:
        self._advance(request.epoch)
        self._refuse_while_busy()
        try:
            shard = await asyncio.wrap_future(self._engine.load(request))
        except ModelError as error:
            raise invalid_argument(str(error)) from error
        except EngineStoppedError as error:
            raise unavailable(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"loading the shard failed: {error}"
            ) from error
        return shard_worker_pb2.LoadShardResponse(
            epoch=self._epoch,
            loaded=shard.loaded,
            has_files=shard.index is not None,
            weights_bytes=shard.weights_bytes,
            duration_s=shard.duration_s,
        )

    async def JoinGroup(  # noqa: N802
        self, request: shard_worker_pb2.JoinGroupRequest, context: Context
    ) -> shard_worker_pb2.JoinGroupResponse:
        self._advance(request.epoch)
        self._refuse_while_busy()
        try:
            group = await asyncio.wrap_future(self._engine.join(request))
        except (CommunicationError, EngineStoppedError) as error:
            raise unavailable(f"the group did not form: {error}") from error
        except (MemoryError, RuntimeError, InitializationError, ModelError) as error:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED
                if is_out_of_memory(error)
                else grpc.StatusCode.FAILED_PRECONDITION,
                f"this rank could not enter the group: {type(error).__name__}: {error}",
            ) from error
        return shard_worker_pb2.JoinGroupResponse(
            epoch=self._epoch, backend=group.backend, duration_s=group.duration_s
        )

    async def Execute(  # noqa: N802
        self, request_iterator: AsyncIterator[shard_worker_pb2.ExecuteRequest], context: Context
    ) -> AsyncIterator[shard_worker_pb2.ExecuteResponse]:
        inbox = self._engine.inbox
        if inbox is None:
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, "this worker is not the leader of a group")
        epoch = self._engine.status.epoch
        if self._outputs is not None:
            self._outputs.put_nowait(None)  # the coordinator has opened another one: the one before is dead
        outputs = self._outputs = _Outputs()
        alive: set[int] = set()

        async def take_commands() -> None:
            async for message in request_iterator:
                if message.epoch != epoch:
                    raise stale_epoch(message.epoch, epoch)
                if message.HasField("submit"):
                    alive.add(message.submit.sequence_id)
                    inbox.submit(message.submit)
                else:
                    alive.discard(message.cancel.sequence_id)
                    inbox.cancel(message.cancel.sequence_id)

        async def beat() -> None:
            while True:
                outputs.put_nowait(shard_worker_pb2.ExecuteResponse(epoch=epoch))
                await asyncio.sleep(EXECUTE_BEAT_S)

        commands, beats = asyncio.create_task(take_commands()), asyncio.create_task(beat())
        commands.add_done_callback(lambda _: outputs.put_nowait(None))
        try:
            # At once: until there is something to compute, nothing else shows that the stream has got here.
            await context.send_initial_metadata(((EPOCH_KEY, str(epoch)),))
            while (response := await outputs.get()) is not None:
                alive.difference_update(
                    output.sequence_id for output in response.outputs if output.finish_reason
                )
                yield response
            if not commands.done():
                raise unavailable(f"epoch {epoch} is over on this worker")
            commands.result()
        finally:
            commands.cancel()
            beats.cancel()
            if self._outputs is outputs:
                self._outputs = None
            for sequence_id in alive:  # nobody listens any more: the blocks are free at the next step
                inbox.cancel(sequence_id)

    async def Abort(  # noqa: N802
        self, request: shard_worker_pb2.AbortRequest, context: Context
    ) -> shard_worker_pb2.AbortResponse:
        self._advance(request.epoch)
        last_step = await self._abort(request.reason)
        return shard_worker_pb2.AbortResponse(epoch=self._epoch, last_step=last_step)

    async def Drain(  # noqa: N802
        self, request: shard_worker_pb2.DrainRequest, context: Context
    ) -> shard_worker_pb2.DrainResponse:
        self._advance(request.epoch)
        self._on_drain(request.reason)
        return shard_worker_pb2.DrainResponse(epoch=self._epoch)

    async def Release(  # noqa: N802
        self, request: shard_worker_pb2.ReleaseRequest, context: Context
    ) -> shard_worker_pb2.ReleaseResponse:
        self._advance(request.epoch)
        await self._abort("the shard is released")
        await asyncio.wrap_future(self._engine.release())
        return shard_worker_pb2.ReleaseResponse(epoch=self._epoch)

    async def _abort(self, reason: str) -> int:
        """Goes on when the caller gives it up: it may have less patience than an engine needs."""
        if self._leaving is None or self._leaving.done():
            self._leaving = asyncio.create_task(asyncio.to_thread(self._engine.abort, reason))
            self._leaving.add_done_callback(self._left)
        try:
            return await asyncio.shield(self._leaving)
        except TimeoutError as error:
            raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, str(error)) from error

    def _left(self, leaving: asyncio.Task[int]) -> None:
        if not leaving.cancelled() and isinstance(leaving.exception(), TimeoutError):
            self._on_stuck(str(leaving.exception()))

    def _refuse_while_busy(self) -> None:
        if self._engine.busy:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION, "this worker is in a group; abort or release it first"
            )

    def _advance(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise stale_epoch(epoch, self._epoch)
        self._epoch = epoch

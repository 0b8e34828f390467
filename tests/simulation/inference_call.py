"""One Generate or Attach over the network, served by the real servicer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc

from ryzanstein.v1 import inference_pb2
from ryzanstein.wire import StatusError
from ryzanstein_client.status import CallFailed

from .network import Connection

if TYPE_CHECKING:
    from .client import Client
    from .coordinator import Coordinator
    from .world import World

#: Messages that may be under way to a slow reader.
_WINDOW = 2


class InferenceCall:
    """Both ends of the call. The server's end is also the servicer's context."""

    def __init__(
        self,
        world: World,
        client: Client,
        request: inference_pb2.GenerateRequest | inference_pb2.AttachRequest,
        timeout_s: float | None,
    ) -> None:
        self._world, self._client, self._request = world, client, request
        self._deadline_s = None if timeout_s is None else world.now_s + timeout_s
        self.connection: Connection | None = None
        self._callbacks: list[Callable[[Any], object]] = []
        self._task: asyncio.Task[None] | None = None
        self._over = False
        self._room = _WINDOW
        self._room_again: asyncio.Future[None] | None = None
        self._read_at_s = 0.0

    # --- the client's end

    def begin(self) -> None:
        world, client, coordinator = self._world, self._client, self._world.coordinator
        if coordinator is None or not coordinator.alive:
            refused = CallFailed(grpc.StatusCode.UNAVAILABLE, "connection refused")
            world.timeline.after(0.001, lambda: client.on_call_failed(self, refused))
            return
        self.connection = world.connect(
            client,
            coordinator,
            on_end_near=lambda: client.on_call_failed(self, CallFailed(grpc.StatusCode.UNAVAILABLE, "")),
            on_end_far=self._lost,
        )
        self.connection.to_far(lambda: self._serve(coordinator))

    def leave(self) -> None:
        """The client cancels the call."""
        if self.connection is not None:
            self.connection.close(self._client)

    def _deliver(self, event: inference_pb2.StreamEvent) -> None:
        """The client reads it, when it gets to it."""
        pause_s = self._client.ask.read_s
        if not pause_s:
            self._client.on_event(self, event)
            return
        self._read_at_s = max(self._read_at_s, self._world.now_s) + pause_s

        def read() -> None:
            self._client.on_event(self, event)
            if self.connection is not None:
                self.connection.to_far(self._more_room)

        self._world.timeline.at(self._read_at_s, read)

    def _status(self, failure: CallFailed) -> None:
        """The status comes behind all messages."""

        def tell() -> None:
            if self.connection is not None:
                self.connection.close(self._client)
            self._client.on_call_failed(self, failure)

        if self._client.ask.read_s:
            self._world.timeline.at(max(self._read_at_s, self._world.now_s), tell)
        else:
            tell()

    # --- the server's end

    def time_remaining(self) -> float | None:
        return None if self._deadline_s is None else self._deadline_s - self._world.now_s

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)

    def _serve(self, coordinator: Coordinator) -> None:
        context: Any = self
        request = self._request
        responses: AsyncIterator[Any]
        if isinstance(request, inference_pb2.GenerateRequest):
            responses = coordinator.servicer.Generate(request, context)
        else:
            responses = coordinator.servicer.Attach(request, context)
        self._task = coordinator.loop.create_task(self._pump(coordinator, responses), name="call")
        coordinator.loop.run_ready()

    async def _pump(self, coordinator: Coordinator, responses: AsyncIterator[Any]) -> None:
        connection = self.connection
        assert connection is not None
        limited = bool(self._client.ask.read_s)
        try:
            async for response in responses:
                if limited:
                    while self._room == 0:
                        self._room_again = coordinator.loop.create_future()
                        await self._room_again
                    self._room -= 1
                event = response.event
                connection.to_near(lambda event=event: self._deliver(event))  # type: ignore[misc]
        except StatusError as error:
            failure = CallFailed(error.code, error.message, error.retry_after_s)
            connection.to_near(lambda: self._status(failure))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the interceptor would make INTERNAL of it: a defect of ours
            self._world.checks.fail(
                f"{self._client.name}: the servicer raised {type(error).__name__}: {error}"
            )
        self._done()

    def _more_room(self) -> None:
        self._room += 1
        if self._room_again is not None and not self._room_again.done():
            self._room_again.set_result(None)
            coordinator = self._world.coordinator
            if coordinator is not None:
                coordinator.loop.run_ready()

    def _lost(self) -> None:
        """The client is gone: gRPC cancels the handler."""
        coordinator = self._world.coordinator
        if coordinator is None or self.connection is None or coordinator is not self.connection.far:
            return
        self._done()
        if self._task is not None:
            self._task.cancel()
        coordinator.loop.run_ready()

    def _done(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(None)

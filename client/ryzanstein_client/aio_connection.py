"""The asynchronous client's only contact with gRPC and asyncio. Its twin for threads is `sync_connection`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from ryzanstein.v1 import inference_pb2, inference_pb2_grpc, operations_pb2, operations_pb2_grpc
from ryzanstein.wire import CHANNEL_OPTIONS

from .errors import InvalidRequest
from .status import CallFailed, call_failed
from .target import DEADLINE_MARGIN_S, LEAVE_TIMEOUT_S, Target

if TYPE_CHECKING:  # these names exist for type checkers only
    from ryzanstein.v1.inference_pb2_grpc import InferenceServiceAsyncStub
    from ryzanstein.v1.operations_pb2_grpc import OperationsServiceAsyncStub

Response = TypeVar("Response")


class AsyncConnection:
    """One channel to a coordinator, opened in the event loop of its first call."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._credentials = target.credentials()
        self._metadata = target.metadata()
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._farewells: set[asyncio.Task[None]] = set()
        self._closed = False
        self._inference: InferenceServiceAsyncStub
        self._operations: OperationsServiceAsyncStub

    def inference(self) -> InferenceServiceAsyncStub:
        """The stub of InferenceService."""
        self._open_channel()
        return self._inference

    def operations(self) -> OperationsServiceAsyncStub:
        """The stub of OperationsService."""
        self._open_channel()
        return self._operations

    async def unary(
        self, method: Callable[..., grpc.aio.UnaryUnaryCall[Any, Response]], request: object, timeout_s: float
    ) -> Response:
        """The one response of a call; raises CallFailed."""
        try:
            response = await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _failure(error) from None
        if response is None:  # what grpc.aio makes of bytes that are no message
            raise CallFailed(
                grpc.StatusCode.INTERNAL, f"{self.target.address} sent an answer that can't be read"
            )
        return response

    def open(
        self, request: inference_pb2.GenerateRequest | inference_pb2.AttachRequest, timeout_s: float | None
    ) -> AsyncStreamCall:
        """Starts a Generate or an Attach."""
        stub = self.inference()
        method: Any = stub.Generate if isinstance(request, inference_pb2.GenerateRequest) else stub.Attach
        if timeout_s is not None:
            timeout_s += DEADLINE_MARGIN_S
        return AsyncStreamCall(method(request, timeout=timeout_s, metadata=self._metadata))

    async def snapshots(self) -> AsyncIterator[operations_pb2.ClusterSnapshot]:
        """The cluster now and after every change; raises CallFailed."""
        call = self.operations().WatchCluster(operations_pb2.WatchClusterRequest(), metadata=self._metadata)
        try:
            async for response in call:
                yield response.cluster
        except grpc.RpcError as error:
            raise _failure(error) from None
        finally:
            call.cancel()

    async def wait(self, delay_s: float) -> None:
        """Waits before the next attempt."""
        await asyncio.sleep(delay_s)

    async def cancel(self, request_id: str) -> None:
        """Tells the server that nobody waits any more. If it can't be told it finds out by itself."""
        request = inference_pb2.CancelRequest(request_id=request_id)
        with suppress(CallFailed):
            await self.unary(self.inference().Cancel, request, LEAVE_TIMEOUT_S)

    def abandon(self, request_id: str, call: AsyncStreamCall | None) -> None:
        """Cancels a request without waiting. May be called from any thread, also by the garbage collector."""
        if self._loop is not None and not self._closed:
            with suppress(RuntimeError):  # the loop is closed, and the channel with it
                self._loop.call_soon_threadsafe(self._say_farewell, request_id, call)

    def _say_farewell(self, request_id: str, call: AsyncStreamCall | None) -> None:
        if call is not None:
            call.cancel()
        if not self._closed:
            task = asyncio.ensure_future(self.cancel(request_id))
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def close(self) -> None:
        """Sends the farewells that are due, then closes the channel."""
        if self._loop is not None:
            await asyncio.sleep(0)  # lets abandon's callbacks run
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=LEAVE_TIMEOUT_S)
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def _open_channel(self) -> None:
        if self._closed:
            raise InvalidRequest("this client is closed", hint="make a new one")
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._loop = loop
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(self.target.address, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(
                    self.target.address, self._credentials, options=CHANNEL_OPTIONS
                )
            self._channel = channel
            self._inference = inference_pb2_grpc.InferenceServiceStub(channel)
            self._operations = operations_pb2_grpc.OperationsServiceStub(channel)
        elif loop is not self._loop:
            raise InvalidRequest(
                "this AsyncClient belongs to another event loop", hint="make one client per event loop"
            )


class AsyncStreamCall:
    """One running Generate or Attach."""

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, inference_pb2.GenerateResponse]) -> None:
        self._call = call

    async def read(self) -> inference_pb2.StreamEvent | None:
        """The next event; None at the end. Raises CallFailed."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise _failure(error) from None
        if not isinstance(response, inference_pb2.GenerateResponse | inference_pb2.AttachResponse):
            return None  # grpc.aio.EOF
        return response.event

    async def drain(self) -> None:
        """Sees a finished stream off, so that the server does not take its end for a client that left."""
        with suppress(grpc.RpcError, TimeoutError):
            await asyncio.wait_for(self._call.read(), LEAVE_TIMEOUT_S)

    def cancel(self) -> None:
        """Ends the call at once."""
        self._call.cancel()


def _failure(error: grpc.RpcError) -> CallFailed:
    assert isinstance(error, grpc.aio.AioRpcError)  # what every call of grpc.aio raises
    return call_failed(error.code(), error.details(), tuple(error.trailing_metadata() or ()))

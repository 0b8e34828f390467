"""The synchronous client's only contact with gRPC and threads. Its twin for asyncio is `aio_connection`."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from ryzanstein.v1 import inference_pb2, inference_pb2_grpc, operations_pb2, operations_pb2_grpc
from ryzanstein.wire import CHANNEL_OPTIONS

from .call_thread import CallThread
from .errors import InvalidRequest
from .status import CallFailed, call_failed
from .target import DEADLINE_MARGIN_S, LEAVE_TIMEOUT_S, Target

Response = TypeVar("Response")


class Connection:
    """One channel to a coordinator. Safe to use from several threads."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._metadata = target.metadata()
        credentials = target.credentials()
        if credentials is None:
            self._channel = grpc.insecure_channel(target.address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target.address, credentials, options=CHANNEL_OPTIONS)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._operations = operations_pb2_grpc.OperationsServiceStub(self._channel)
        self._calls = CallThread(self._channel, self._metadata)
        weakref.finalize(self, self._calls.end).atexit = False  # at exit all are waited for
        self._closed = False

    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        """The stub of InferenceService."""
        self._check_open()
        return self._inference

    def operations(self) -> operations_pb2_grpc.OperationsServiceStub:
        """The stub of OperationsService."""
        self._check_open()
        return self._operations

    def unary(self, method: Callable[..., Response], request: object, timeout_s: float) -> Response:
        """The one response of a call; raises CallFailed."""
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _failure(error) from None

    def open(
        self, request: inference_pb2.GenerateRequest | inference_pb2.AttachRequest, timeout_s: float | None
    ) -> StreamCall:
        """Starts a Generate or an Attach."""
        stub = self.inference()
        method: Any = stub.Generate if isinstance(request, inference_pb2.GenerateRequest) else stub.Attach
        if timeout_s is not None:
            timeout_s += DEADLINE_MARGIN_S
        metadata = self._metadata
        return StreamCall(self._calls.begin(lambda: method(request, timeout=timeout_s, metadata=metadata)))

    def snapshots(self) -> Iterator[operations_pb2.ClusterSnapshot]:
        """The cluster now and after every change; raises CallFailed."""
        stub, request = self.operations(), operations_pb2.WatchClusterRequest()
        call = self._calls.begin(lambda: stub.WatchCluster(request, metadata=self._metadata))
        try:
            for response in call:
                yield response.cluster
        except grpc.RpcError as error:
            raise _failure(error) from None
        finally:
            call.cancel()

    def wait(self, delay_s: float) -> None:
        """Waits before the next attempt, and lets the channel connect meanwhile.

        While no call waits on a channel it goes on connecting only every five seconds, so one does: the health
        check, whatever its answer.
        """
        end_s = time.monotonic() + delay_s
        check: Callable[..., bytes] = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        with suppress(grpc.RpcError, ValueError):  # ValueError: the channel is closed
            check(b"", timeout=delay_s, metadata=self._metadata, wait_for_ready=True)
        time.sleep(max(0.0, end_s - time.monotonic()))

    def cancel(self, request_id: str) -> None:
        """Tells the server that nobody waits any more. If it can't be told it finds out by itself."""
        request = inference_pb2.CancelRequest(request_id=request_id)
        with suppress(CallFailed):
            self.unary(self.inference().Cancel, request, LEAVE_TIMEOUT_S)

    def abandon(self, request_id: str, call: StreamCall | None) -> None:
        """Cancels a request without waiting. May be called from any thread, also by the garbage collector."""
        self._calls.leave(request_id, call)

    def close(self) -> None:
        """Sends the farewells that are due, then closes the channel."""
        self._closed = True
        self._calls.end()
        self._calls.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequest("this client is closed", hint="make a new one")


class StreamCall:
    """One running Generate or Attach."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def read(self) -> inference_pb2.StreamEvent | None:
        """The next event; None at the end. Raises CallFailed."""
        try:
            event: inference_pb2.StreamEvent = next(self._call).event
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise _failure(error) from None
        return event

    def drain(self) -> None:
        """Sees a finished stream off, so that the server does not take its end for a client that left."""
        with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
            self._call.result(timeout=LEAVE_TIMEOUT_S)

    def cancel(self) -> None:
        """Ends the call at once."""
        self._call.cancel()


def _failure(error: grpc.RpcError) -> CallFailed:
    assert isinstance(error, grpc.Call)  # what every call of a channel raises
    return call_failed(error.code(), error.details(), tuple(error.trailing_metadata() or ()))

"""The synchronous client's one thread: it begins calls and says farewell to those that were left.

Ctrl-C strikes the main thread between any two instructions. Where gRPC begins a call, it starts threads and
counts what it owes to the call: interrupted there, it waits for ever when the channel is closed. Nothing
interrupts this thread.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import grpc

from ryzanstein.v1 import inference_pb2, inference_pb2_grpc

from .errors import InvalidRequest
from .target import LEAVE_TIMEOUT_S

#: How often who waits for a call to begin looks whether the thread still runs.
_LOOK_S = 1.0


class CallThread:
    """Started by the first call; ends, and closes the channel, with `end`.

    The garbage collector may run a stream's `__del__` while this very thread holds one of gRPC's locks: so
    nothing of gRPC may be called there, and only `SimpleQueue.put`, which is made for it, is.
    """

    def __init__(self, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._channel = channel
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._metadata = metadata
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._farewells: list[Any] = []  # calls under way
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def begin(self, start: Callable[[], Any]) -> Any:
        """What `start` returns, a call. Who is interrupted meanwhile gets none, and gRPC cancels it."""
        thread = self._started()
        begun: Future[Any] = Future()

        def job() -> None:
            try:
                begun.set_result(start())
            except BaseException as error:  # noqa: BLE001 - raised where the call was asked for
                begun.set_exception(error)

        self._jobs.put(job)
        while True:
            with suppress(TimeoutError):
                return begun.result(_LOOK_S)
            if not thread.is_alive():
                raise InvalidRequest("this client is closed", hint="make a new one")

    def leave(self, request_id: str, call: Any | None) -> None:
        """Ends a call, if there is one, and cancels the request on the server, without waiting."""

        def job() -> None:
            if call is not None:
                call.cancel()
            request = inference_pb2.CancelRequest(request_id=request_id)
            self._farewells = [farewell for farewell in self._farewells if not farewell.done()]
            with suppress(ValueError):  # the channel is closed
                farewell = self._stub.Cancel.future(request, timeout=LEAVE_TIMEOUT_S, metadata=self._metadata)
                self._farewells.append(farewell)

        self._jobs.put(job)

    def end(self) -> None:
        """No call follows: the thread sends the farewells that are due and closes the channel."""
        self._jobs.put(None)

    def wait(self) -> None:
        """Until `end` is done, but not for ever."""
        if self._thread is None:
            self._channel.close()
            return
        with suppress(RuntimeError):  # Ctrl-C came while it was being started: it is waited for at exit
            self._thread.join(2 * LEAVE_TIMEOUT_S)

    def _started(self) -> threading.Thread:
        with self._lock:
            if self._thread is None or self._thread.ident is None:  # or Ctrl-C kept it from being started
                _running.add(self)
                self._thread = threading.Thread(target=self._run, name="ryzanstein-calls", daemon=True)
                self._thread.start()
            return self._thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # and with it a call that nobody took
        self._jobs.put(None)  # for a thread whose start was interrupted, and that is not known
        for farewell in self._farewells:
            with suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                farewell.result(LEAVE_TIMEOUT_S)
        self._channel.close()


_running: weakref.WeakSet[CallThread] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A program that breaks out of a stream and ends must not leave the server generating for nobody."""
    threads = list(_running)
    for each in threads:
        each.end()
    for each in threads:
        each.wait()

"""A streamed answer: drives `ResumableStream` over as many calls as it takes."""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Self

from ryzanstein.v1 import inference_pb2

from .aio_connection import AsyncConnection, AsyncStreamCall
from .errors import InvalidRequest, RyzansteinError
from .messages import completion_from, usage_from
from .resume import ResumableStream
from .retry import ResumePolicy
from .status import CallFailed
from .types import Chunk, Completion, Usage

log = logging.getLogger("ryzanstein_client")


class AsyncCompletionStream:
    """The chunks of one answer, as they come; each token exactly once and in order.

    The request is sent with the first `async for`. Lost connections and a restarted coordinator are bridged.
    Leaving before the last chunk, however it happens, cancels the request on the server.
    """

    def __init__(
        self, connection: AsyncConnection, request: inference_pb2.GenerateRequest, policy: ResumePolicy
    ) -> None:
        self._connection = connection
        self._call: AsyncStreamCall | None = None
        self._begun = False
        self._left = False
        self._state = ResumableStream(
            request, address=connection.target.address, policy=policy, now_s=time.monotonic()
        )

    @property
    def request_id(self) -> str:
        """The id that `cancel` takes."""
        return self._state.request_id

    @property
    def seed(self) -> int | None:
        """What repeats the answer: the seed given, or the one drawn. None before the first chunk."""
        return None if self._state.accepted is None else self._state.accepted.seed

    @property
    def usage(self) -> Usage | None:
        """Token counts. None before the last chunk."""
        return None if self._state.finished is None else usage_from(self._state.finished.usage)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._left:
            raise StopAsyncIteration
        try:
            if self._state.finished is not None:
                await self._leave_finished()
                raise StopAsyncIteration
            return await self._next_chunk()
        except StopAsyncIteration:
            raise
        except RyzansteinError:
            if self._call is None:  # the server has ended the request, or can't be reached
                self._left = True
            else:  # what it sends can't be used
                self.abandon()
            raise
        except BaseException:
            # Cancelled or interrupted: the server must know, but nobody should have to wait for that.
            self.abandon()
            raise

    async def collect(self) -> Completion:
        """Reads all of a stream that was not read from before, and returns the whole answer."""
        if self._begun:
            raise InvalidRequest(
                "this stream was read from already", hint="join the text of its chunks instead"
            )
        chunks = [chunk async for chunk in self]
        accepted, finished = self._state.accepted, self._state.finished
        assert accepted is not None  # else the stream would have ended
        assert finished is not None  # with an exception
        return completion_from(accepted, finished, chunks)

    async def aclose(self) -> None:
        """Leaves the stream; cancels the request on the server unless it is over."""
        if self._left:
            return
        self._left = True
        call, self._call = self._call, None
        if self._begun and self._state.finished is None:
            await self._connection.cancel(self.request_id)
        if call is not None:
            call.cancel()

    def abandon(self) -> None:
        """Leaves the stream without waiting; the server is told in the background."""
        if self._left:
            return
        self._left = True
        call, self._call = self._call, None
        if self._begun and self._state.finished is None:
            self._connection.abandon(self.request_id, call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_state"):  # else the constructor did not get so far
            self.abandon()

    async def _next_chunk(self) -> Chunk:
        while True:
            try:
                if self._call is None:
                    self._begun = True
                    now_s = time.monotonic()
                    request = self._state.next_request(now_s)
                    self._call = self._connection.open(request, self._state.remaining_s(now_s))
                event = await self._call.read()
                if event is None:
                    raise CallFailed.unusable("it ended before its last event")
                chunk = self._state.on_event(event, time.monotonic())
            except CallFailed as failure:
                if self._call is not None:
                    self._call.cancel()
                    self._call = None
                delay_s = self._state.on_failure(failure, time.monotonic())
                self._tell(failure)
                await self._connection.wait(delay_s)
            else:
                if chunk is not None:
                    return chunk

    def _tell(self, failure: CallFailed) -> None:
        """Once per outage, and only if something had been accepted: what never began ends with an exception."""
        if self._state.accepted is not None and self._state.attempts == 1:
            log.warning(
                "lost %s after %d tokens (%s), trying again",
                self._connection.target.address,
                self._state.tokens_received,
                failure,
            )

    async def _leave_finished(self) -> None:
        self._left = True
        call, self._call = self._call, None
        if call is not None:
            await call.drain()

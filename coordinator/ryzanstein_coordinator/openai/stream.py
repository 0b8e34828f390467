"""Replies as server-sent events: one per message of the leader, each with the id to go on from."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..requests import Ending
from .answer import Answer, failure_of, read
from .errors import ErrorReply, internal_reply, reply_of
from .resume import event_id

_log = structlog.get_logger()

#: A comment is sent when nothing else was for so long: proxies cut connections that are silent.
_IDLE_S = 15.0

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def events(answer: Answer, *, include_usage: bool, idle_s: float = _IDLE_S) -> AsyncGenerator[str]:
    """The text of the stream, event by event. A failure is the last event, and no [DONE] follows it."""
    choices = answer.choices()
    head = answer.head(_chunk_kind(answer.kind))
    extra: dict[str, Any] = {"usage": None} if include_usage else {}
    positions = [subscription.index for subscription in answer.subscriptions]
    async with contextlib.aclosing(read(answer.subscriptions, idle_s)) as items:
        async for item in items:
            if item is None:
                yield ": nothing new\n\n"
                continue
            index, what = item
            if isinstance(what, Ending):
                failure = failure_of(answer.subscriptions[index], what)
                if failure is not None:
                    yield _failed(reply_of(failure))
                    return
                choice: dict[str, Any] | None = choices[index].last(what)
            else:
                positions[index] = what.first_index + len(what.token_ids)
                choice = choices[index].chunk(what)
            if choice is not None:
                yield _event({**head, "choices": [choice], **extra}, positions)
    if include_usage:
        yield _event({**head, "choices": [], "usage": answer.usage()}, positions)
    yield "data: [DONE]\n\n"


class EventStream(Response):
    """Sends the events of an answer and leaves it: at its end, or when the client has gone, which is noticed
    also while nothing is sent."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, *, include_usage: bool, headers: dict[str, str]) -> None:
        super().__init__(headers={**_HEADERS, **headers})
        del self.headers["content-length"]
        self._answer = answer
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._answer.leave()
            gone.cancel()
            writing.cancel()
            await asyncio.wait({writing, gone})
        if not writing.cancelled():
            writing.result()

    async def _write(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async with contextlib.aclosing(events(self._answer, include_usage=self._include_usage)) as texts:
            try:
                async for text in texts:
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            except Exception as error:  # noqa: BLE001 - a client that reads a stream is told in the stream
                _log.exception("http_stream_failed", answer=self._answer.answer_id)
                last = _failed(internal_reply(error)).encode()
                await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(chunk: dict[str, Any], positions: list[int]) -> str:
    # JSON in ASCII: some clients take U+2028 and others like it for the end of a line.
    return f"id: {event_id(positions)}\ndata: {json.dumps(chunk, separators=(',', ':'), allow_nan=False)}\n\n"


def _failed(reply: ErrorReply) -> str:
    return f"event: error\ndata: {json.dumps(reply.body, separators=(',', ':'))}\n\n"


def _chunk_kind(kind: str) -> str:
    """Text completions call their chunks what they call the whole."""
    return f"{kind}.chunk" if kind.startswith("chat.") else kind

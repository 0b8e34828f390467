"""Replies in one piece."""

from __future__ import annotations

import asyncio
import json

from starlette.requests import Request
from starlette.responses import Response

from ..requests import Ending
from .answer import Answer, failure_of
from .errors import reply_of
from .stream import disconnected


async def whole_reply(answer: Answer, request: Request, headers: dict[str, str]) -> Response:
    """Waits for the end of all sequences. A client that goes away in the meantime frees their places."""
    choices = answer.choices()
    reading = asyncio.create_task(_endings(answer))
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait({reading, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        answer.leave()
        gone.cancel()
        reading.cancel()
        await asyncio.wait({reading, gone})
    if reading.cancelled():
        return Response(status_code=499)  # nobody reads it
    endings = reading.result()
    for subscription, ending in zip(answer.subscriptions, endings, strict=True):
        failure = failure_of(subscription, ending)
        if failure is not None:
            return reply_of(failure).response()
    wholes = [choice.whole(ending) for choice, ending in zip(choices, endings, strict=True)]
    body = {**answer.head(answer.kind), "choices": wholes, "usage": answer.usage()}
    text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    return Response(text, media_type="application/json", headers=headers)


async def _endings(answer: Answer) -> list[Ending]:
    """One after the other: their tokens are recorded whoever listens."""
    endings = []
    for subscription in answer.subscriptions:
        while not isinstance(item := await subscription.next(), Ending):
            pass
        endings.append(item)
    return endings

"""Sends requests away before anything of them is read or routed, when there is no room for any: under a flood that is
most of them, and each would take time from those that are generated."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ryzanstein.wire import StatusError

from ..access import http_caller
from ..front_door import FrontDoor
from .errors import reply_of

#: What generates. The rest costs little, and is asked for when there is no room, too.
GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})


class EarlyRefusal:
    """ASGI middleware, below the guard that says who calls: on the way through FastAPI a refusal took
    half as much again."""

    def __init__(self, app: ASGIApp, front_door: FrontDoor) -> None:
        self._app = app
        self._front_door = front_door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _may_be_sent_away(scope):
            try:
                self._front_door.check_room(http_caller(scope).name)
            except StatusError as error:
                await reply_of(error).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _may_be_sent_away(scope: Scope) -> bool:
    """A request with an idempotency key is read: it may go on with another."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in GENERATING:
        return False
    headers = Headers(scope=scope)
    # A connection that ends with its reply would end with a body on its way: the client sees it break.
    if scope.get("http_version") == "1.0" or "idempotency-key" in headers:
        return False
    options = ",".join(headers.getlist("connection")).lower().split(",")
    return "close" not in map(str.strip, options)

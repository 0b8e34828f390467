"""Around every HTTP request: its id, the size of its body, and the end of every exception."""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ryzanstein.wire import MAX_MESSAGE_BYTES

from .errors import ErrorReply, internal_reply

_log = structlog.get_logger()

#: What a client may call its request: it is repeated in a header and in log lines.
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Edge:
    """ASGI middleware: `x-request-id` on every reply, 413 for a body that is too large, 500 for a defect.

    A body is read as a whole and parsed in the event loop: its bound is that of a gRPC message.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = checked_id(headers.get("x-request-id"))
        # Every HTTP request has a task, and with it a context, of its own.
        structlog.contextvars.bind_contextvars(http_request_id=request_id)
        received_bytes = 0
        begun = False

        async def limited() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        async def named(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        announced = headers.get("content-length", "")
        try:
            if announced.isdecimal() and int(announced) > self._max_body_bytes:
                await ErrorReply(413, self._too_large()).response()(scope, receive, named)
            else:
                await self._app(scope, limited, named)
        except Exception as error:  # noqa: BLE001 - this is where every exception ends
            _log.exception("http_internal", path=scope["path"])
            if not begun:  # else the server cuts the connection, unless the reply is complete
                await internal_reply(error).response()(scope, receive, named)

    def _too_large(self) -> str:
        return f"the body has more than {self._max_body_bytes} bytes; send a shorter prompt or fewer of them"


def checked_id(given: str | None) -> str:
    """The client's own id if it is 1 to 128 printable ASCII characters without blanks, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"req-{secrets.token_hex(12)}"

"""HTTP/1.1 as uvicorn speaks it, with bounds: the time for a request's head and for its body, and connections.

uvicorn waits for a head as long as the client likes once a byte of it has come; a few hundred clients that send a
byte now and then (slowloris) would hold all connections.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: From the connection, or from the end of the reply before, to the end of the head.
HEAD_TIMEOUT_S = 10.0

#: From the end of the head to the end of the body: 8 MiB within it are 280 kB/s.
BODY_TIMEOUT_S = 30.0

#: Of all clients together. Those beyond are closed at once: what is there goes on.
MAX_CONNECTIONS = 2048

#: uvicorn has a warning for each request that is none, and two for each that wants another protocol: strangers would
#: fill the disk. Defects of ours are errors.
_defects = logging.getLogger("ryzanstein.http")
_defects.setLevel(logging.ERROR)

#: Of the request line and all headers together.
MAX_HEAD_BYTES = 16 * 1024


class PatientProtocol(H11Protocol):
    """Made by uvicorn, one for each connection."""

    head_timeout_s = HEAD_TIMEOUT_S
    body_timeout_s = BODY_TIMEOUT_S
    max_connections = MAX_CONNECTIONS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = _defects
        self._waiting_for: object = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Sets the deadline when what is waited for has changed, and only then: each byte gives no new patience."""
        state = self.conn.their_state
        if state is h11.IDLE:
            waiting_for, patience_s = ("head", self.cycle), self.head_timeout_s
        elif state is h11.SEND_BODY:
            waiting_for, patience_s = ("body", self.cycle), self.body_timeout_s
        else:
            self._stop_watching()
            return
        if waiting_for != self._waiting_for:
            self._stop_watching()
            self._waiting_for = waiting_for
            self._deadline = self.loop.call_later(patience_s, self._give_up)

    def _stop_watching(self) -> None:
        self._waiting_for = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        # Not closed in order: that would wait until the other side has read what is still to be sent.
        self.transport.abort()

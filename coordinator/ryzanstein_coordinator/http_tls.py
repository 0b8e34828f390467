"""TLS before HTTP, with the same bounds: the time for the handshake, and connections, those in a handshake too.

uvicorn would leave both to asyncio, which gives a silent client a minute and 256 KiB: 3000 of them cost 940 MB.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any, cast

from .http_protocol import MAX_CONNECTIONS

HANDSHAKE_TIMEOUT_S = 10


class TlsDoor:
    """Makes the protocol of each connection: TLS, and when that stands, what `inner` makes."""

    handshake_timeout_s = HANDSHAKE_TIMEOUT_S
    max_connections = MAX_CONNECTIONS

    def __init__(self, context: ssl.SSLContext, inner: Callable[..., asyncio.Protocol]) -> None:
        self._context = context
        self._inner = inner
        self._open: set[_BoundedTls] = set()

    def __call__(self, **options: Any) -> asyncio.Protocol:
        """As uvicorn calls the class of a protocol."""
        return _Threshold(lambda transport: self._begin(transport, options))

    def _begin(self, transport: asyncio.Transport, options: dict[str, Any]) -> None:
        if len(self._open) >= self.max_connections:
            transport.abort()
            return
        tls = _BoundedTls(
            asyncio.get_running_loop(),
            self._inner(**options),
            self._context,
            cast("Any", None),  # nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=self.handshake_timeout_s,
        )
        tls.on_lost = lambda: self._open.discard(tls)
        self._open.add(tls)
        transport.set_protocol(tls)
        tls.connection_made(transport)


class _Threshold(asyncio.Protocol):
    """Of a connection that has just been accepted; nothing is read before TLS takes it over."""

    def __init__(self, begin: Callable[[asyncio.Transport], None]) -> None:
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._begin(cast("asyncio.Transport", transport))


class _BoundedTls(SSLProtocol):
    """asyncio's own, with a smaller buffer, that says when it is over."""

    max_size = 16 * 1024  # of one read, which is what a TLS record holds at most
    on_lost: Callable[[], None]

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.on_lost()

"""Runs an ASGI application on uvicorn inside of the coordinator's event loop, on a socket that is bound beforehand."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any, cast

import uvicorn

from .http_protocol import MAX_HEAD_BYTES, PatientProtocol
from .http_tls import TlsDoor


class ListenError(Exception):
    """An address can't be listened on; the message says which and what to do."""

    exit_code = 1


def address(host: str, port: int) -> str:
    """HOST:PORT, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int, *, flag: str) -> socket.socket:
    """A listening socket.

    Raises:
        ListenError: the port is taken, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: connections inherit that, and asyncio turns Nagle's algorithm off only where it is TCP's.
    # Else what is written in two parts (a reply's head and body, events) waits 40 ms for the client's delayed ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        where = address(host, port)
        raise ListenError(f"can't listen on {where}: {error.strerror}; choose another {flag}") from None
    return listener


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own, and uvicorn would raise SIGTERM again."""

    def __init__(self, app: Any, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            # A stream of server-sent events never ends by itself.
            timeout_graceful_shutdown=1,
        )
        config.load()
        if tls is not None:
            config.http_protocol_class = cast("Any", TlsDoor(tls, PatientProtocol))
        super().__init__(config)
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def run_until_stopped(self) -> None:
        """Serves until `stop` was called and the open connections had their second."""
        await self.serve(sockets=[self._listener])

    def stop(self) -> None:
        self.should_exit = True

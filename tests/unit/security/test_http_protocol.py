"""Clients that take their time: HTTP waits for a head and a body, and not for ever."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Request

from ryzanstein_coordinator.http_protocol import MAX_HEAD_BYTES, PatientProtocol
from ryzanstein_coordinator.http_server import HttpServer, bind

PATIENCE_S = 0.2


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientProtocol, "head_timeout_s", PATIENCE_S)
    monkeypatch.setattr(PatientProtocol, "body_timeout_s", PATIENCE_S)


@asynccontextmanager
async def server() -> AsyncIterator[int]:
    app = FastAPI()

    @app.post("/slow")
    async def slow(request: Request) -> int:
        """Takes longer than a client may take to send its request."""
        size = len(await request.body())
        await asyncio.sleep(2 * PATIENCE_S)
        return size

    listener = bind("127.0.0.1", 0, flag="--http-port")
    port: int = listener.getsockname()[1]
    running = HttpServer(app, listener)
    serving = asyncio.create_task(running.run_until_stopped())
    try:
        yield port
    finally:
        running.stop()
        await serving


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server has cut the connection, with nothing more said."""
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def trickle(port: int, first: bytes, drop: bytes) -> bytes:
    """What comes back from a server to which a byte is sent again and again; empty: it closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(first)
        answer = asyncio.ensure_future(reader.read())
        for _ in range(200):
            await asyncio.wait({answer}, timeout=PATIENCE_S / 10)
            if answer.done():
                return b"" if answer.exception() else answer.result()
            with contextlib.suppress(OSError):
                writer.write(drop)
        raise AssertionError("it is still waiting")
    finally:
        await close(writer)


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"POST /slow HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n"),
        (b"P", b""),
        (b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n", b"x"),
        (b"POST /slow HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["nothing", "a header now and then", "one letter", "a byte of the body now and then", "chunks"],
)
async def test_a_slow_request_is_given_up(first: bytes, drop: bytes) -> None:
    async with server() as port:
        assert await asyncio.wait_for(trickle(port, first, drop), 10) == b""


async def test_a_request_that_has_come_takes_as_long_as_it_takes_and_another_may_follow() -> None:
    async with server() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(1) == b"3"
        writer.write(b"POST /slow")  # the next one does not come to its end
        assert await asyncio.wait_for(closed(reader), 10)
        await close(writer)


async def test_what_is_written_is_sent_at_once() -> None:
    """Nagle's algorithm would keep a reply's body until the client has acknowledged its head, 40 ms later."""
    accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    class Looking(PatientProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connection = transport.get_extra_info("socket")
            accepted.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    listener = bind("127.0.0.1", 0, flag="--http-port")
    running = HttpServer(FastAPI(), listener)
    running.config.http_protocol_class = Looking
    serving = asyncio.create_task(running.run_until_stopped())
    _, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        assert await asyncio.wait_for(accepted, 10) != 0
    finally:
        await close(writer)
        running.stop()
        await serving


async def test_a_head_that_is_too_long_is_refused() -> None:
    async with server() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # What comes in one piece is looked at as a whole, and a piece has at most 256 KiB.
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\na: " + b"b" * (MAX_HEAD_BYTES + 256 * 1024))
        answer = b""
        with contextlib.suppress(
            ConnectionResetError
        ):  # what it has not read may be in the way of its answer
            answer = await asyncio.wait_for(reader.read(), 10)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
        await close(writer)


@pytest.mark.parametrize(
    "request_head",
    [
        b"\x16\x03\x01 garbage\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n",
    ],
)
async def test_strangers_do_not_fill_the_log(request_head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with server() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_head)
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 4")
        await close(writer)
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


async def test_connections_beyond_the_bound_are_closed_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PatientProtocol, "max_connections", 2)
    monkeypatch.setattr(PatientProtocol, "head_timeout_s", 30.0)
    async with server() as port:
        first, second = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)
        third = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(third[0].readexactly(1), 10)
        first[1].write(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        assert (await asyncio.wait_for(first[0].readuntil(b"\r\n"), 10)).startswith(b"HTTP/1.1 200")
        for _, writer in (first, second, third):
            await close(writer)

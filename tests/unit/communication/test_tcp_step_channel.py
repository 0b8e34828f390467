"""Who is let into the leader's step channel, over real sockets in one process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable

import pytest
from torch._C._distributed_c10d import HashStore

from ryzanstein_shard_worker.communication import CommunicationError
from ryzanstein_shard_worker.communication.tcp_step_channel import (
    _ADDRESS_KEY,
    _HELLO,
    TcpStepChannel,
    connect_step_channel,
)


def connect(
    store: HashStore,
    rank: int,
    *,
    world_size: int = 2,
    secret: str = "nonce",
    limit_s: float = 5.0,
    cancelled: Callable[[], bool] = lambda: False,
) -> TcpStepChannel:
    return connect_step_channel(
        store,
        rank=rank,
        world_size=world_size,
        host="127.0.0.1",
        secret=secret,
        join_timeout_s=limit_s,
        timeout_s=1.0,
        cancelled=cancelled,
    )


class Leader:
    """Rank 0 of two, waiting for the other in a thread."""

    def __init__(self, store: HashStore, *, limit_s: float = 5.0) -> None:
        self.channel: TcpStepChannel | None = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.channel = connect(store, 0, limit_s=limit_s)
            except Exception as error:  # noqa: BLE001 - looked at by the test
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def address(self, store: HashStore) -> tuple[str, int]:
        host, port = json.loads(store.get(_ADDRESS_KEY))
        return host, port


def test_a_stranger_is_turned_away_and_the_member_is_let_in() -> None:
    store = HashStore()
    leader = Leader(store)
    for greeting in (
        b"GET / HTTP/1.1\r\n\r\n".ljust(_HELLO.size, b"\0"),
        _HELLO.pack(b"another nonce".ljust(64, b"\0"), 1),
        _HELLO.pack(b"nonce".ljust(64, b"\0"), 2),  # no such rank
        _HELLO.pack(b"nonce".ljust(64, b"\0"), 0),  # the leader itself
    ):
        with socket.create_connection(leader.address(store), 5) as stranger:
            stranger.sendall(greeting)
            stranger.settimeout(5)
            assert stranger.recv(1) == b""
    member = connect(store, 1)
    leader.thread.join(5)
    assert leader.channel is not None
    leader.channel.send(b"plan")
    assert member.receive(5.0) == b"plan"
    leader.channel.close()
    with pytest.raises(CommunicationError, match="rank 0 closed the connection"):
        member.receive(5.0)
    member.close()


def test_a_connection_that_says_nothing_does_not_keep_the_member_out() -> None:
    store = HashStore()
    leader = Leader(store)
    with socket.create_connection(leader.address(store), 5):
        member = connect(store, 1)
        leader.thread.join(5)
    assert leader.channel is not None
    leader.channel.close()
    member.close()


def test_a_member_that_does_not_come_is_named() -> None:
    leader = Leader(HashStore(), limit_s=0.2)
    leader.thread.join(5)
    assert isinstance(leader.error, TimeoutError)
    assert str(leader.error) == "rank 1 did not come to the step channel"


def test_waiting_for_a_member_can_be_cancelled() -> None:
    started_at = time.monotonic()
    with pytest.raises(InterruptedError):
        connect(HashStore(), 0, cancelled=lambda: time.monotonic() - started_at > 0.1)
    assert time.monotonic() - started_at < 1.0


def test_a_leader_that_can_not_be_reached_is_an_error() -> None:
    store = HashStore()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    store.set(_ADDRESS_KEY, json.dumps(["127.0.0.1", port]))
    with pytest.raises(ConnectionRefusedError):
        connect(store, 1)
    with pytest.raises(InterruptedError):
        connect(store, 1, cancelled=lambda: True)


def test_nothing_follows_a_message_that_went_out_in_part() -> None:
    """A reader that comes back would take the next message's bytes for the rest of the last one."""
    left, right = socket.socketpair()
    with left, right:
        leader = TcpStepChannel({1: left}, rank=0, world_size=2, timeout_s=0.05)
        with pytest.raises(CommunicationError, match="rank 1 took nothing"):
            leader.send(b"x" * 8_000_000)
        right.setblocking(False)
        taken = len(right.recv(8_000_000))
        with pytest.raises(CommunicationError, match="rank 1 took nothing") as again:
            leader.send(b"short")
        assert again.value.peer == 1
        while part := _received(right):
            taken += len(part)
        assert taken < 8_000_000


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_a_stranger_that_says_nothing_does_not_keep_the_ranks_waiting() -> None:
    store = HashStore()
    leader = Leader(store)
    with socket.create_connection(leader.address(store), 5) as stranger:
        started_at = time.monotonic()
        dripping = threading.Event()

        def drip() -> None:
            while not dripping.wait(0.1):
                try:
                    stranger.send(b"n")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        member = connect(store, 1)
        leader.thread.join(5)
        assert leader.channel is not None
        assert time.monotonic() - started_at < 3.0
        dripping.set()
        thread.join(5)
    member.close()
    leader.channel.close()

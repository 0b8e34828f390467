"""The step channel between hosts: one TCP connection from the leader to every other rank."""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import struct
import time
from collections.abc import Callable
from typing import NoReturn

from torch._C._distributed_c10d import Store

from .errors import CommunicationError
from .sockets import cut
from .step_channel import StepChannel

_ADDRESS_KEY = "step_channel"
_LENGTH = struct.Struct("<I")
#: Nobody is let in who does not know the attempt's nonce.
_HELLO = struct.Struct("<64sI")
#: For the greeting of whoever has connected: a member sends it at once.
_GREETING_S = 0.5
#: How often a wait for members looks whether it was cancelled.
_GLANCE_S = 0.02


class TcpStepChannel(StepChannel):
    """Messages with their length before them. In the kernel's buffers a rank may lag a few behind."""

    def __init__(
        self, connections: dict[int, socket.socket], *, rank: int, world_size: int, timeout_s: float
    ) -> None:
        """
        Args:
            connections: on rank 0 to every other rank; elsewhere to rank 0.
            timeout_s: for a message's bytes to go out, or to follow its first ones.
        """
        self.rank = rank
        self.world_size = world_size
        self._connections = connections
        self._timeout_s = timeout_s
        self._sequence = 0
        self._broken: tuple[str, int | None] | None = None

    def send(self, payload: bytes) -> None:
        self._sequence += 1
        self._check("step_channel.send")
        frame = _LENGTH.pack(len(payload)) + payload
        for peer, connection in self._connections.items():
            try:
                connection.settimeout(self._timeout_s)
                connection.sendall(frame)
            except TimeoutError:
                self._fail(
                    "step_channel.send", f"rank {peer} took nothing within {self._timeout_s:g} s", peer
                )
            except OSError as error:
                self._fail("step_channel.send", f"rank {peer} closed the connection ({error})", peer)

    def receive(self, timeout_s: float) -> bytes:
        self._sequence += 1
        self._check("step_channel.receive")
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, timeout_s))
        return self._read(length, self._timeout_s) if length else b""

    def abort(self, reason: str) -> None:
        if self._broken is None:
            self._broken = (f"aborted: {reason}", None)
        for connection in self._connections.values():
            cut(connection)

    def close(self) -> None:
        if self._broken is None:
            self._broken = ("the group is closed", None)
        for connection in self._connections.values():
            connection.close()

    def _read(self, count: int, timeout_s: float) -> bytes:
        connection = self._connections[0]
        data = bytearray(count)
        view = memoryview(data)
        deadline = time.monotonic() + timeout_s
        try:
            while view:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                read = connection.recv_into(view)
                if read == 0:
                    self._fail("step_channel.receive", "rank 0 closed the connection", 0)
                view = view[read:]
        except TimeoutError:
            self._fail("step_channel.receive", f"no answer from rank 0 within {timeout_s:g} s", 0)
        except OSError as error:
            self._fail("step_channel.receive", f"rank 0 closed the connection ({error})", 0)
        return bytes(data)

    def _check(self, operation: str) -> None:
        """After a failure a message may have gone out, or come in, in part: nothing may follow it."""
        if self._broken is not None:
            self._fail(operation, *self._broken)

    def _fail(self, operation: str, reason: str, peer: int | None) -> NoReturn:
        if self._broken is None:
            self._broken = (reason, peer)
        why, who = self._broken
        raise CommunicationError(
            rank=self.rank, peer=who, operation=operation, sequence=self._sequence, reason=why
        ) from None


def connect_step_channel(
    store: Store,
    *,
    rank: int,
    world_size: int,
    host: str,
    secret: str,
    join_timeout_s: float,
    timeout_s: float,
    cancelled: Callable[[], bool] = lambda: False,
) -> TcpStepChannel:
    """Connects the ranks of a group: rank 0 listens on `host`, a free port, until all others have come.

    Args:
        secret: what all members know and nobody else; at most 64 bytes.
        cancelled: asked every few milliseconds.

    Raises:
        TimeoutError: a rank did not come; the message names it.
        OSError: the leader can't be reached.
        InterruptedError: `cancelled` said yes.
    """
    deadline = time.monotonic() + join_timeout_s
    hello = secret.encode()[:64].ljust(64, b"\0")
    if rank == 0:
        connections = _accept_all(store, world_size, host, hello, deadline, cancelled)
    else:
        address = json.loads(store.get(_ADDRESS_KEY))
        connection = _connect((address[0], address[1]), deadline, cancelled)
        connection.sendall(_HELLO.pack(hello, rank))
        connections = {0: connection}
    for connection in connections.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return TcpStepChannel(connections, rank=rank, world_size=world_size, timeout_s=timeout_s)


def _connect(address: tuple[str, int], deadline: float, cancelled: Callable[[], bool]) -> socket.socket:
    """Tries again every second: an attempt that hangs can't be cancelled."""
    while True:
        if cancelled():
            raise InterruptedError("forming the step channel was aborted")
        remaining_s = deadline - time.monotonic()
        try:
            return socket.create_connection(address, min(max(remaining_s, 0.001), 1.0))
        except TimeoutError:
            if remaining_s <= 1.0:
                raise TimeoutError(f"rank 0 can't be reached at {address[0]}:{address[1]}") from None


def _accept_all(
    store: Store,
    world_size: int,
    host: str,
    hello: bytes,
    deadline: float,
    cancelled: Callable[[], bool],
) -> dict[int, socket.socket]:
    connections: dict[int, socket.socket] = {}
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as on_failure:
        with socket.create_server((host, 0), family=family, backlog=world_size) as server:
            server.settimeout(_GLANCE_S)
            store.set(_ADDRESS_KEY, json.dumps(server.getsockname()[:2]))
            while len(connections) < world_size - 1:
                if cancelled():
                    raise InterruptedError("forming the step channel was aborted")
                if time.monotonic() >= deadline:
                    missing = sorted(set(range(1, world_size)) - set(connections))
                    raise TimeoutError(f"rank {missing[0]} did not come to the step channel")
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    peer = _greeted_by(connection, hello, world_size)
                    if peer is None or peer in connections:
                        connection.close()
                    else:
                        connections[peer] = on_failure.enter_context(connection)
        on_failure.pop_all()
    return connections


def _greeted_by(connection: socket.socket, hello: bytes, world_size: int) -> int | None:
    """The rank at the other end; None for a stranger, who must not keep the ranks waiting."""
    deadline = time.monotonic() + _GREETING_S
    greeting = b""
    try:
        while len(greeting) < _HELLO.size:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            part = connection.recv(_HELLO.size - len(greeting))
            if not part:
                return None
            greeting += part
    except OSError:
        return None
    told, rank = _HELLO.unpack(greeting)
    if not hmac.compare_digest(told, hello) or not 0 < rank < world_size:
        return None
    return int(rank)

"""The TCP connections that a library opened in this process: found by watching, cut to free who waits.

gloo offers no way to interrupt a blocked operation. Shutting its sockets down does: the operation fails
within about a millisecond, and so does the peer's.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from dataclasses import dataclass
from pathlib import Path

_FDS = Path("/proc/self/fd")


@dataclass(frozen=True)
class Endpoints:
    """Both ends of a connection, as "ADDRESS PORT" of the side that looks."""

    local: str
    remote: str

    def mirrored(self) -> Endpoints:
        """The same connection as its other side sees it."""
        return Endpoints(local=self.remote, remote=self.local)


def socket_inodes() -> dict[str, int]:
    """Sockets of this process: the kernel's name ("socket:[1234]", never reused) → file descriptor."""
    found = {}
    for entry in _FDS.iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            target = str(entry.readlink())
            if target.startswith("socket:"):
                found[target] = int(entry.name)
    return found


def connections_since(before: dict[str, int]) -> dict[Endpoints, socket.socket]:
    """Connected TCP sockets that appeared after `before` was taken.

    Each is a duplicate of its own: the descriptor stays ours when the library closes its own, so that a
    reused number is never mistaken for it. The caller closes them.
    """
    found: dict[Endpoints, socket.socket] = {}
    for inode, fd in socket_inodes().items():
        if inode in before:
            continue
        try:
            connection = socket.socket(fileno=os.dup(fd))
        except OSError:
            continue
        endpoints = _endpoints(connection)
        if endpoints is None:
            connection.close()
        else:
            found[endpoints] = connection
    return found


def cut(connection: socket.socket) -> None:
    """Ends the connection under its owner. Not for a listening socket: gloo would end the process."""
    with contextlib.suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)


def wait_for_cut(connections: dict[int, socket.socket]) -> int | None:
    """Waits until one of the connections ends, on whichever side; nothing is read from them.

    Returns its key; None when one was closed here before.
    """
    waiting = select.poll()
    keys = {}
    for key, connection in connections.items():
        with contextlib.suppress(OSError, ValueError):  # closed already
            waiting.register(connection, select.POLLRDHUP)
            keys[connection.fileno()] = key
    if len(keys) < len(connections) or not keys:
        return None
    return keys[waiting.poll()[0][0]]


def _endpoints(connection: socket.socket) -> Endpoints | None:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
        return None
    try:
        return Endpoints(local=_name(connection.getsockname()), remote=_name(connection.getpeername()))
    except OSError:  # not connected: a listening socket, or one that is on its way
        return None


def _name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    # The same IPv4 address reads differently on an IPv6 socket.
    return f"{address[0].removeprefix('::ffff:')} {address[1]}"

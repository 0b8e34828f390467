"""Whether a child gets on: `serve` is its service manager, and hears of it what systemd would (sd_notify(3)).

A program that tells `READY=1` and then no `WATCHDOG=1` for long hangs: a signal has stopped it, its control loop stands
still, or its engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

#: Counted, not timed: after this process (or all of the machine) stood still, what waits in the socket is read before
#: the next count.
_COUNTS = 12
_MOST_BYTES = 4096
#: At a time: whoever floods it keeps nobody else from being heard.
_MOST_MESSAGES = 64
#: struct ucred: process, user, group.
_CREDENTIALS = struct.Struct("3i")


class ChildWatch:
    """Of one life of a child. Needs a running event loop. As a context manager it closes itself."""

    def __init__(self, watchdog_s: float) -> None:
        self.watchdog_s = watchdog_s
        self._ready = False
        self._heard = 0
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        # The kernel finds a free name in the abstract namespace: no file is left behind, but others may send to it.
        self._socket.bind("")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the child needs to know."""
        name: bytes = self._socket.getsockname()
        return {
            "NOTIFY_SOCKET": f"@{name[1:].decode()}",
            "WATCHDOG_USEC": str(round(self.watchdog_s * 1e6)),
            "WATCHDOG_PID": "",
        }

    async def hung(self) -> None:
        """Returns when nothing was heard for `watchdog_s`, once it was ready."""
        silent = 0
        while silent < _COUNTS:
            before = self._heard
            await asyncio.sleep(self.watchdog_s / _COUNTS)
            silent = silent + 1 if self._ready and self._heard == before else 0

    def close(self) -> None:
        """Nobody listens any more."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MOST_MESSAGES):
                data, attached, _, _ = self._socket.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
                if not _is_ours(attached):
                    continue
                lines = data.split(b"\n")
                self._ready = self._ready or b"READY=1" in lines
                self._heard += b"WATCHDOG=1" in lines


def _is_ours(attached: list[tuple[int, int, bytes]]) -> bool:
    """Whether the kernel says that a process of this user has sent it."""
    for level, kind, data in attached:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return bool(_CREDENTIALS.unpack_from(data)[1] == os.getuid())
    return False


def why_silent(pid: int) -> str:
    """What the kernel says of a process that tells nothing."""
    with contextlib.suppress(OSError, IndexError):
        state = (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()[0]
        )
        return {
            "T": "a signal has stopped it (SIGSTOP)",
            "t": "a debugger has stopped it",
            "D": "it waits for a device or a file system",
        }.get(state, "it runs, but gets nothing done")
    return "it is gone"

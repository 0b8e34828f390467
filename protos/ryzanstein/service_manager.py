"""What a program tells systemd of itself, by the protocol of sd_notify(3): a datagram of lines to a socket that the
environment names.

    manager = ServiceManager.from_environment(os.environ)   # once, in main
    manager.ready("standby")                                # Type=notify: the unit is up
    manager.status("serving epoch 3")                       # `systemctl status` shows it; sent when it differs
    manager.alive()                                         # WatchdogSec=: only after real progress
    manager.stopping("draining", within_s=40.0)

Without a manager every call does nothing. A manager that does not take a message costs the message, never the program:
nothing here waits or raises, and what was lost is sent again with the next status.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from typing import Self

_SOCKET, _WATCHDOG, _WATCHDOG_PROCESS = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"

#: What a status may be long, in characters: it is one line of a table.
MOST_STATUS = 250


class ServiceManager:
    """The manager that started this process, or nobody."""

    def __init__(self, address: str = "", *, watchdog_s: float | None = None) -> None:
        """
        Args:
            address: path of the socket; one that begins with "@" is in the abstract namespace. Empty: nobody listens.
            watchdog_s: without `alive` for so long, the process is ended; None: it never is.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s if address else None
        self._socket: socket.socket | None = None
        self._status = ""
        #: Lines that were not taken.
        self._owed: list[str] = []

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Takes the variables away: a child that inherited them would speak in this process's name."""
        address = environment.pop(_SOCKET, "")
        timeout_us = environment.pop(_WATCHDOG, "")
        process = environment.pop(_WATCHDOG_PROCESS, "")
        watched = timeout_us.isdigit() and int(timeout_us) > 0 and process in ("", str(os.getpid()))
        return cls(address, watchdog_s=int(timeout_us) / 1e6 if watched else None)

    @property
    def listens(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """The service listens."""
        self._tell("READY=1", *self._changed(status))

    def status(self, status: str) -> None:
        """What it is doing, in one line; nothing is sent while it is the same."""
        if lines := self._changed(status):
            self._tell(*lines)
        elif self._owed:
            self._tell()

    def alive(self) -> None:
        """Something was achieved, or there was nothing to do: the watchdog begins anew."""
        if self.watchdog_s is not None:
            self._tell("WATCHDOG=1", keep=False)

    def extend(self, seconds: float) -> None:
        """The start, stop or run under way may last so much longer from now on."""
        self._tell(f"EXTEND_TIMEOUT_USEC={_microseconds(seconds)}", keep=False)

    def stopping(self, status: str, *, within_s: float) -> None:
        """The process is about to end, and may take so long for it, whatever the unit's own limit is."""
        self._tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={_microseconds(within_s)}", *self._changed(status))

    def _changed(self, status: str) -> list[str]:
        # A line break would let a message from elsewhere (a reason, a name) add lines of its own.
        line = " ".join(status.split())
        if len(line) > MOST_STATUS:
            line = f"{line[: MOST_STATUS - 1]}…"
        if line == self._status:
            return []
        self._status = line
        return [f"STATUS={line}"]

    def _tell(self, *lines: str, keep: bool = True) -> None:
        """Sends the lines, and before them what is owed; what is not worth repeating later is not kept."""
        if not self._address:
            return
        message = [*self._owed, *lines]
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # A manager that is busy must not hold up the event loop.
            self._socket.sendto("\n".join(message).encode(), socket.MSG_DONTWAIT, self._address)
        except OSError:
            if keep:
                self._owed = _without_repetition(message)
        else:
            self._owed = []

    def close(self) -> None:
        """Frees the socket; nothing is told any more."""
        self._address = ""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None


def _microseconds(seconds: float) -> int:
    return max(1, round(seconds * 1e6))


def _without_repetition(lines: list[str]) -> list[str]:
    """The last line of each kind, so that what is owed to a deaf manager does not grow."""
    latest = {line.partition("=")[0]: line for line in lines}
    return list(latest.values())

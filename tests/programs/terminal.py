"""A process that believes to have a terminal, driven as a person would: look, type, press Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")


class Terminal:
    """80 columns wide, as the process sees it."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._main, child = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ryzanstein_client.cli.main", *words],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", **(environment or {})},
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - it only makes one system call
        )
        os.close(child)
        self.raw = ""

    @property
    def text(self) -> str:
        """All that was shown so far, without styles."""
        return _ESCAPES.sub("", self.raw).replace("\r\n", "\n")

    def expect(self, text: str, *, timeout_s: float = 20.0) -> None:
        """Reads until the text was shown; what came before is forgotten by the next `expect`."""
        start = getattr(self, "_seen", 0)
        deadline_s = time.monotonic() + timeout_s
        while text not in self.text[start:]:
            assert time.monotonic() < deadline_s, f"{text!r} was not shown, but {self.text[start:]!r}"
            self._read(deadline_s - time.monotonic())
        self._seen = self.text.index(text, start) + len(text)

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def press_control_c(self) -> None:
        self.type("\x03")

    def press_control_c_at_prompt(self) -> None:
        """Again if nothing happens: Python misses a signal that comes just before readline begins to wait."""
        shown = len(self.raw)
        while self.process.poll() is None and "\n" not in self.raw[shown:]:
            self.type("\x03")
            deadline_s = time.monotonic() + 3.0
            while (
                "\n" not in self.raw[shown:] and self.process.poll() is None and time.monotonic() < deadline_s
            ):
                self._read(0.05)

    def press_control_d(self) -> None:
        self.type("\x04")

    def wait(self, timeout_s: float = 20.0) -> int:
        deadline_s = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, f"still running; shown: {self.text!r}"
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._main], [], [], max(0.0, timeout_s))[0]:
            return False
        try:
            data = os.read(self._main, 65536)
        except OSError:  # the other side is closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


def _take_terminal() -> None:
    """Makes the pty the controlling terminal, so that Ctrl-C becomes SIGINT."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

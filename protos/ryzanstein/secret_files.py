"""Files with secrets (API keys, join tokens, private keys): read only where nobody else can read or change them.

As ssh does with its keys, a file that others may read is refused, not warned about: a warning in a log is read after
the secret has gone. Unlike ssh, the file's group may read it, because that is how systemd shows a credential to a
service that runs as another user, and how a file is shared with the one group that a service runs in.

No text of an error or a log line ever holds a part of what such a file holds.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from .settings import SettingsError

T = TypeVar("T")

#: A file of ten thousand keys has less.
MAX_SECRET_BYTES = 1024 * 1024

#: Others: nothing. The group: not to write.
_FORBIDDEN = stat.S_IRWXO | stat.S_IWGRP

#: How often a file is looked at, at most: a change counts within this time.
LOOK_S = 1.0


class SecretFileError(SettingsError):
    """A file with a secret can't be used. The message names the file and what to do, never what is in it."""


def read_secret(path: Path, flag: str) -> bytes:
    """The file's bytes. A pipe is read to its end, once.

    Raises:
        SecretFileError: it can't be read, others can read or change it, it is empty or larger than 1 MiB.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _FORBIDDEN:
                raise SecretFileError(
                    f"{flag}: {path} can be read or changed by others (mode {mode:03o}); make it yours alone: "
                    f"chmod 600 {path}"
                )
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise SecretFileError(f"{flag}: can't read {path}: {error.strerror or error}") from None
    if not data.strip():
        raise SecretFileError(f"{flag}: {path} is empty")
    if len(data) > MAX_SECRET_BYTES:
        raise SecretFileError(f"{flag}: {path} is larger than {MAX_SECRET_BYTES} bytes")
    return data


def secret_lines(data: bytes, path: Path, flag: str) -> list[tuple[int, str]]:
    """(number, text) of each line that is neither blank nor a comment (`#` at its beginning).

    Raises:
        SecretFileError: it is no UTF-8 text.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise SecretFileError(f"{flag}: {path} is not UTF-8 text") from None
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


class WatchedFiles:
    """Tells when one of some files was changed, replaced, or given other rights. Safe from any thread."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`every_s`: None: LOOK_S."""
        self._paths = tuple(paths)
        self._every_s = LOOK_S if every_s is None else every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at_s = clock()
        self._seen = self._look()

    def changed(self) -> bool:
        """True once after a change. Looks no more often than every `every_s`."""
        with self._lock:
            now_s = self._clock()
            if now_s - self._looked_at_s < self._every_s:
                return False
            self._looked_at_s = now_s
            before, self._seen = self._seen, self._look()
            return before != self._seen

    def _look(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:  # the time of the last change of contents or rights; a pipe can't be read again
                regular = stat.S_ISREG(status.st_mode)
                found.append((status.st_ino, status.st_size, status.st_ctime_ns) if regular else None)
        return found


class Watched(Generic[T]):
    """What was read from files, read again after they have changed.

    What can't be read then is logged, and what was read before stays: half a file must not lock everybody out.
    """

    def __init__(
        self,
        read: Callable[[], T],
        paths: Sequence[Path],
        *,
        every_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads for the first time; raises what `read` raises (SettingsError and those below it)."""
        self._read = read
        self._files = WatchedFiles(paths, every_s=every_s, clock=clock)  # before reading: no change is missed
        self._paths = paths
        self._value = read()

    def get(self) -> T:
        """The value as of now. From any thread."""
        if self._files.changed():
            import structlog  # not needed by the client library, which must be light to import

            log = structlog.get_logger(__name__)
            try:
                self._value = self._read()
            except SettingsError as error:
                log.warning("file_not_taken", reason=str(error))
            else:
                log.info("file_taken", files=[str(path) for path in self._paths])
        return self._value

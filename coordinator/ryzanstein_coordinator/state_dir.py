"""The directory of what has to outlive the coordinator's process: one coordinator at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_FILE = "coordinator.lock"


class StateError(Exception):
    """What has to outlive the process can't be kept; the message names the directory and what to do."""

    exit_code = 1


@contextlib.contextmanager
def own(directory: Path) -> Iterator[None]:
    """Keeps other coordinators out: two would take each other's requests for those of a former life.

    The kernel gives the lock back when this process ends, however it ends.

    Raises:
        StateError: another coordinator has it, or it can't be written.
    """
    path = directory / _FILE
    os.umask(0o077)  # prompts are kept there: whatever this process writes is for its own user
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"--state-dir {directory} can't be used: {error.strerror}; give another one, or make it writable "
            f"for user {os.getuid()}"
        ) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(file, 32).decode(errors="replace").strip() or "unknown"
            raise StateError(
                f"--state-dir {directory} is in use by another coordinator (process {owner}): stop it, or "
                "give this one a --state-dir of its own"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)

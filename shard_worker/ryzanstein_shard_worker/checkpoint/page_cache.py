"""What the kernel keeps of files in memory: dropped, so that a load is as after a restart of the machine; asked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_SAMPLES = 64


def drop_pages(paths: Iterable[Path]) -> None:
    """Asks the kernel to forget what it holds of files. Pages that another process has mapped stay."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)  # what is not written yet can't be dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def cached_share(paths: Iterable[Path]) -> float | None:
    """How much of files is in memory, 0 to 1, from samples all over them; None where the file system doesn't tell."""
    found: list[bool] = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # asking must read nothing ahead
            size = os.fstat(fd).st_size
            found += [_is_cached(fd, size * sample // _SAMPLES) for sample in range(_SAMPLES)]
        except OSError:
            return None
        finally:
            os.close(fd)
    return sum(found) / len(found) if found else None


def _is_cached(fd: int, offset: int) -> bool:
    try:
        os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    return True

"""A directory that appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


class OutputError(Exception):
    """The directory can't be written; the message says why and what to do."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def new_directory(target: Path, needed_bytes: int) -> Iterator[Path]:
    """A directory to write into, which gets the target's name when the block ends without an error.

    After an error it is removed. What a killed process left is removed by the next one that has the same
    target. Raises OutputError: the target exists, another process is writing it, or the disk has less than
    `needed_bytes` or becomes full.
    """
    target = target.absolute()
    _refuse_existing(target)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial, target):
            _clear(partial)
            _check_space(partial, needed_bytes)
            try:
                yield partial
                _sync_directory(partial)
                _refuse_existing(target)
                partial.rename(target)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        _sync_directory(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{target}: the disk is full; {needed_bytes} bytes are needed, nothing was left behind"
            ) from error
        raise OutputError(f"{target}: can't be written: {error}") from error


def _refuse_existing(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise OutputError(
            f"{target}: exists already; remove it or choose another directory, nothing is overwritten",
            exit_code=2,
        )


@contextlib.contextmanager
def _locked(partial: Path, target: Path) -> Iterator[None]:
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{target}: another process is writing it; wait for it or stop it") from None
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise OutputError(f"{target}: another process has just written it")
        yield
    finally:
        os.close(descriptor)


def _clear(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_space(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        directory.rmdir()
        raise OutputError(
            f"{directory.parent}: has {free_bytes} bytes free, {needed_bytes} are needed; free some or "
            "choose another disk"
        )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

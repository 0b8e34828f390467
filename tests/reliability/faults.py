"""Faults for real processes."""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Failpoints:
    """The directory in which the programs look for armed points."""

    directory: Path

    def arm(self, point: str, process: str, action: str) -> None:
        """`process` does `action` when it comes to `point` next; see `ryzanstein.failpoints`."""
        armed = self.directory / f"{point}@{process}"
        staged = armed.with_name(f".{armed.name}")
        staged.write_text(action, encoding="utf-8")
        staged.rename(armed)  # never half written

    def taken(self, point: str, process: str) -> bool:
        """It has happened."""
        return not (self.directory / f"{point}@{process}").exists()

    def clear(self) -> None:
        for armed in self.directory.iterdir():
            armed.unlink()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP for as long as the block lasts."""
    process = psutil.Process(pid)
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def memory_limited(pid: int, limit_bytes: int) -> Iterator[None]:
    """Limits what the process takes from now on: beyond, the kernel kills it. OSError where that can't be."""
    group = Path("/sys/fs/cgroup/memory") / f"ryzanstein-{uuid.uuid4().hex[:8]}"
    limit = group / "memory.limit_in_bytes"
    if not group.parent.is_dir():  # the unified hierarchy
        group = Path("/sys/fs/cgroup") / group.name
        limit = group / "memory.max"
    group.mkdir()
    try:
        limit.write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        deadline = time.monotonic() + 10
        while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        group.rmdir()

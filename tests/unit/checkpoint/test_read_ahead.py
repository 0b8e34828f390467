"""Read-ahead: every byte is asked for once, in order, and not farther ahead than the window."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ryzanstein_shard_worker.checkpoint import read_ahead
from ryzanstein_shard_worker.checkpoint.read_ahead import ReadAhead, Span


class Kernel:
    """Passes requests on to the kernel and remembers them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, int]] = []
        self._changed = threading.Condition()
        self._fadvise = os.posix_fadvise
        monkeypatch.setattr(os, "posix_fadvise", self._advise)
        monkeypatch.setattr(read_ahead, "_STEP_BYTES", 10)

    def _advise(self, descriptor: int, begin: int, size: int, advice: int) -> None:
        self._fadvise(descriptor, begin, size, advice)
        with self._changed:
            self.asked.append((begin, begin + size))
            self._changed.notify_all()

    def wait_for(self, end: int) -> None:
        """Until the byte before `end` has been asked for."""
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.asked) and self.asked[-1][1] >= end, timeout=10)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_asks_for_everything_in_order(kernel: Kernel, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_bytes(bytes(100))
    spans = [Span(one, 0, 25), Span(one, 40, 45), Span(two, 90, 100)]
    with ReadAhead(spans, window_bytes=1000):
        kernel.wait_for(100)
    assert kernel.asked == [(0, 10), (10, 20), (20, 25), (40, 45), (90, 100)]


def test_stays_within_the_window_and_goes_on_with_the_reader(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    spans = [Span(path, begin, begin + 20) for begin in range(0, 100, 20)]
    with ReadAhead(spans, window_bytes=30) as ahead:
        kernel.wait_for(30)
        for number, span in enumerate(spans):
            assert kernel.asked[-1][1] <= 20 * number + 30
            ahead.advance(span)
            kernel.wait_for(min(100, 20 * (number + 1) + 30))
    assert kernel.asked[-1] == (90, 100)


def test_stops_with_its_reader(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with ReadAhead([Span(path, 0, 100)], window_bytes=10):
        kernel.wait_for(10)
    assert kernel.asked == [(0, 10)]
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint-read-ahead"]


def test_leaves_errors_to_the_reader(kernel: Kernel, tmp_path: Path) -> None:
    with ReadAhead([Span(tmp_path / "gone", 0, 10)]):
        pass
    assert kernel.asked == []

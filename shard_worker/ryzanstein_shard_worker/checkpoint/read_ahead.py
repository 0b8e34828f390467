"""Asks the kernel for the bytes that will be needed next, while those that are there are being copied."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_STEP_BYTES = 8 << 20  # one request; small enough to stop soon when the reader does


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [begin, end) of a file."""

    path: Path
    begin: int
    end: int


class ReadAhead:
    """A thread that keeps up to `window_bytes` before the reader in the page cache.

    It only advises: where it fails or is slow, the reader waits for the disk itself. Use it in a `with` block
    and call `advance` with every span that has been read, in the order given.
    """

    def __init__(self, spans: Sequence[Span], window_bytes: int = 512 << 20) -> None:
        self._spans = spans
        self._window_bytes = window_bytes
        self._read_bytes = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint-read-ahead", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def advance(self, span: Span) -> None:
        """The reader is done with the span."""
        with self._changed:
            self._read_bytes += span.end - span.begin
            self._changed.notify()

    def _run(self) -> None:
        asked_bytes = 0
        descriptor, path = -1, None
        with contextlib.suppress(OSError):  # the reader meets the same error, and reports it
            for span in self._spans:
                if path != span.path:
                    if descriptor >= 0:
                        os.close(descriptor)
                        descriptor = -1
                    descriptor, path = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC), span.path
                for begin in range(span.begin, span.end, _STEP_BYTES):
                    size = min(_STEP_BYTES, span.end - begin)
                    if not self._may_ask(asked_bytes + size):
                        break
                    os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_WILLNEED)
                    asked_bytes += size
        if descriptor >= 0:
            os.close(descriptor)

    def _may_ask(self, asked_bytes: int) -> bool:
        """Waits until the reader is near enough; False when it has stopped."""
        with self._changed:
            while not self._stopped and asked_bytes > self._read_bytes + self._window_bytes:
                self._changed.wait()
            return not self._stopped

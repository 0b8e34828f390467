"""Keeps the threads that compute on processors of their own; all other threads of the process go where they like."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import structlog

from ryzanstein.processors import format_processors

log = structlog.get_logger(__name__)


class Pinning:
    """Of one thread, and of those that it starts: torch's own, and those that read the checkpoint, so that weights lie
    in the memory of the node where they are used (Linux gives a page where it is touched first).

    gRPC, the event loop and the heartbeats run in threads that were started elsewhere. They may use any processor:
    behind a thread that computes for seconds they would be late.
    """

    def __init__(self, processors: tuple[int, ...]) -> None:
        """`processors`: empty: nothing is pinned."""
        self._processors = processors
        self._before: set[int] | None = None

    def pin(self) -> None:
        """The calling thread. Where the system refuses it (the processors are gone, or the cpuset has others) it says
        so, and nothing is pinned: a rank that is slower is better than none."""
        if not self._processors:
            return
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, self._processors)
        except OSError as error:
            log.warning(
                "not_pinned",
                processors=format_processors(self._processors),
                reason=error.strerror,
                of=len(before),
            )
            return
        self._before = before
        log.info("pinned", processors=format_processors(os.sched_getaffinity(0)))

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """For the calling thread, while it starts threads that don't compute: gloo's and gRPC's."""
        if self._before is None:
            yield
            return
        os.sched_setaffinity(0, self._before)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the cpuset changed meanwhile
                os.sched_setaffinity(0, self._processors)

"""Whether a device gets past the operations that were launched on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .handler import LastOperation


class DeviceEvent(Protocol):
    """A point in a device's work (torch.cuda.Event)."""

    def query(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Probe:
    """An operation that was launched and has not been seen to end."""

    event: DeviceEvent
    last: LastOperation
    launched_at: float


class LaunchWatch:
    """Notices that a device does not get past an operation. One probe is out at a time, so it costs little.

    The engine thread calls `launched`; `overdue` is asked by the thread that watches.
    """

    def __init__(self, record: Callable[[], DeviceEvent | None], *, timeout_s: float) -> None:
        """`record` marks the present point of the device's work, or returns None where that can't be done."""
        self._record = record
        self._timeout_s = timeout_s
        self._probe: _Probe | None = None

    def launched(self, last: LastOperation, now: float) -> None:
        """An operation was launched."""
        if self._probe is None:
            event = self._record()
            if event is not None:
                self._probe = _Probe(event, last, now)

    def overdue(self, now: float) -> LastOperation | None:
        """The operation that has not ended in time; None while all is well.

        Raises:
            RuntimeError: the device reports an error.
        """
        probe = self._probe
        if probe is None:
            return None
        if probe.event.query():
            self._probe = None
            return None
        return probe.last if now - probe.launched_at >= self._timeout_s else None

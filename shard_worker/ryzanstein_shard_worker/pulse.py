"""Whether the engine gets on with what it does, as far as others can see it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .step_loop import Progress

#: Forming a group waits for every rank, warming up compiles, packing a layer is one call: so long it may be silent
#: without being stuck.
SILENCE_S = 60.0


class Pulse:
    """Written by the engine thread, read by the control thread; each field is one word."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds, the one that `Progress` uses."""
        self._clock = clock
        self._working_since: float | None = None
        self._felt_at = 0.0

    def run(self, command: Callable[[], None]) -> None:
        """Runs what the engine was told to do."""
        self._working_since = self._clock()
        command()
        self._working_since = None

    def felt_in(self, progress: Callable[[float], None]) -> Callable[[float], None]:
        """`progress`, each call of which is a sign of life."""

        def felt(fraction: float) -> None:
            self._felt_at = self._clock()
            progress(fraction)

        return felt

    def gets_on(self, watchdog_s: float, stepping: Progress | None) -> bool:
        """Whether it waits for a command, or has shown within `watchdog_s`, beyond what such work may take, that it
        gets on.

        Args:
            stepping: of the group that it is in; None: of none.
        """
        since = self._working_since
        if since is None:
            return True
        stepped_at, patience_s = (
            (since, SILENCE_S) if stepping is None else (stepping.last_step_at, stepping.patience_s)
        )
        return self._clock() - max(since, self._felt_at, stepped_at) <= watchdog_s + patience_s

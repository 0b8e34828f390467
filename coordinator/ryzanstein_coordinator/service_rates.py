"""What was measured of serving: how long a token takes, and how many a request takes. Pure: the time is passed in.

From the last steps and the last requests only, so that it follows what is asked; and None until there is enough of
it: nobody is refused on a guess. Steps of a while ago say nothing about now: who is refused for what they say would
be refused for ever, because no step follows that could say something else.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

_STEPS = 256
_LEAST_STEPS = 32
#: Seconds for which a step counts.
_RECENT_S = 30.0
_REQUESTS = 64
_LEAST_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds from a stream's token to its next, in the last steps."""

    #: The median: a recovery or two among them don't count.
    token_s: float
    #: One step in ten was as fast: what may be hoped for when there is less to do.
    fastest_s: float


class ServiceRates:
    """Told of every step and every end."""

    def __init__(self) -> None:
        self._gaps_s: deque[tuple[float, float]] = deque(maxlen=_STEPS)  # moment, seconds
        self._outputs: deque[int] = deque(maxlen=_REQUESTS)

    def stepped(self, now: float, gaps_s: Mapping[float, int]) -> None:
        """Seconds since the token before, and how many streams waited so long for theirs of this step."""
        if gaps_s:
            self._gaps_s.append((now, max(gaps_s, key=gaps_s.__getitem__)))

    def ended(self, output_tokens: int) -> None:
        """A request came to its own end with so many tokens."""
        self._outputs.append(output_tokens)

    def pace(self, now: float) -> Pace | None:
        """None: not measured of late."""
        recent = sorted(gap_s for at, gap_s in self._gaps_s if now - at <= _RECENT_S)
        if len(recent) < _LEAST_STEPS:
            return None
        return Pace(statistics.median(recent), recent[len(recent) // 10])

    @property
    def output_tokens(self) -> float | None:
        """Of a request, on average; None: not measured yet."""
        return statistics.fmean(self._outputs) if len(self._outputs) >= _LEAST_REQUESTS else None

    def request_s(self, now: float) -> float | None:
        """Seconds that a request runs, on average, its prefill aside; None: not measured of late."""
        pace, tokens = self.pace(now), self.output_tokens
        return None if pace is None or tokens is None else pace.token_s * tokens

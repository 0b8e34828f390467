"""How many prompt tokens a step may compute beside streams that decode: as many as the streams hardly notice.

Steps of one size take about the same time on one machine, and very different times on two. So the leader measures its
own steps and says in every plan how much the step may prefill; the other ranks just read it. Durations come from
outside, nothing here looks at a clock.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

#: Durations that a median is taken of: a disturbance of up to four steps changes nothing.
_REMEMBERED = 9
#: Steps with prefill after which it is measured again what one without takes.
_REMEASURED_AFTER = 64
#: Rows are padded to a multiple of some power of two by most matrix kernels: more of them cost nothing up to there.
_ROWS_ALIGNED = 16


class PrefillPace:
    """Learns from the leader's steps. Streams decode at `slowdown` times their undisturbed step, or a little faster."""

    def __init__(self, slowdown: float, max_batched_tokens: int) -> None:
        """
        Args:
            slowdown: above 1; how many times as long as without prefill a step may take.
            max_batched_tokens: of a step. A sixteenth of it is prefilled whatever that costs: less would read all
                weights for next to nothing.
        """
        self._slowdown = slowdown
        self._most = max_batched_tokens
        self.least_tokens = max(_ROWS_ALIGNED, max_batched_tokens // 16)
        #: Seconds of steps that only decode, by about how many streams.
        self._decoding: dict[int, _Durations] = {}
        #: Seconds that one token of prefill made a step longer; None: not known yet.
        self._costs: deque[float] = deque(maxlen=_REMEMBERED)
        self._cost_s: float | None = None
        self._prefilled_last = 0

    def tokens(self, streams: int) -> int:
        """What the next step may prefill if so many streams decode; 0: it is to show what a step without takes."""
        known = self._decoding.get(_about(streams))
        if known is None or known.age >= _REMEASURED_AFTER:
            return 0
        if self._cost_s is None:
            return self._aligned(self.least_tokens, streams)
        allowed_s = (self._slowdown - 1.0) * known.median_s
        # A step of twice as many tokens may cost more than twice as much: it is tried first.
        most = min(self._most, 2 * max(self._prefilled_last, self.least_tokens))
        wanted = most if self._cost_s * most <= allowed_s else int(allowed_s / self._cost_s)
        return self._aligned(max(self.least_tokens, wanted), streams)

    def stepped(self, streams: int, prefilled: int, seconds: float, allowed: int) -> None:
        """A step in which `streams` decoded beside `prefilled` tokens, of which `tokens` had allowed `allowed`."""
        if not streams or not math.isfinite(seconds):
            return
        key = _about(streams)
        if not prefilled:
            self._decoding.setdefault(key, _Durations()).add(seconds)
            return
        known = self._decoding.get(key)
        if known is None:
            return
        known.age += 1
        # The last piece of a prompt is often short, and what goes on after a fault is not bounded: neither is typical.
        if self.least_tokens // 2 <= prefilled <= max(allowed, self.least_tokens):
            self._costs.append(max(0.0, seconds - known.median_s) / prefilled)
            self._cost_s = statistics.median(self._costs)
            self._prefilled_last = prefilled

    def _aligned(self, tokens: int, streams: int) -> int:
        """Fewer, so that all rows together fill the kernels' tiles, but not fewer than `least_tokens`."""
        rows = (tokens + streams) // _ROWS_ALIGNED * _ROWS_ALIGNED
        return max(self.least_tokens, rows - streams)


class _Durations:
    """The last steps of one kind, and how many of another kind came since."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self.age = 0
        self.median_s = 0.0

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)
        self.age = 0
        self.median_s = statistics.median(self._seconds)


def _about(streams: int) -> int:
    """One class for 1, for 2 and 3, for 4 to 7, …"""
    return streams.bit_length()

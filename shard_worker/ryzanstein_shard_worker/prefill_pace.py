"""How many prompt tokens a step may compute beside streams that decode: as many as the streams hardly notice.

What a token of prefill costs, next to a step that only decodes, differs from machine to machine and from model to
model. So the leader learns it from its own steps and says in every plan how much the step may prefill; the other ranks
just read it. Two steps are compared only if one followed the other, because a machine that others use is twice as fast
in one second as in the next. Durations come from outside: nothing here looks at a clock.
"""

from __future__ import annotations

import statistics
from collections import deque

#: Rows of a step that matrix kernels don't have to pad (docs/decisions/0010); beyond, multiples of the last one.
_ROWS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
#: Comparisons that a median is taken of: up to four disturbed ones change nothing.
_REMEMBERED = 9
#: Steps in a row with prefill after which one without shows what that takes; sooner while nothing is known.
_COMPARED_AFTER, _COMPARED_AT_FIRST_AFTER = 16, 4


class PrefillPace:
    """Learns from the leader's steps how much prefill makes them `slowdown` times as long."""

    def __init__(self, slowdown: float, max_batched_tokens: int) -> None:
        """
        Args:
            slowdown: above 1; how many times as long as without prefill a step may take.
            max_batched_tokens: of a step. A thirty-second part of it, on CPUs 16 tokens, is prefilled whatever that
                costs: less would read all weights for next to nothing.
        """
        self._allowed_cost = slowdown - 1.0
        self._most = max_batched_tokens
        self._least = max(_ROWS[0], max_batched_tokens // 32)
        #: By about how many streams: what one token of prefill cost, as a share of the step without, and how many
        #: tokens there were.
        self._costs: dict[int, deque[tuple[float, int]]] = {}
        self._mixed_steps = 0
        self._before: tuple[int, int, float] | None = None

    def tokens(self, streams: int) -> int:
        """What the next step may prefill if so many streams decode; 0: it is to show what a step without takes."""
        if not streams:
            return self._most
        costs = self._nearest(_about(streams))
        if self._mixed_steps >= (_COMPARED_AFTER if costs else _COMPARED_AT_FIRST_AFTER):
            return 0
        if not costs:
            return self._rounded(self._least, streams)
        cost = statistics.median(cost for cost, _ in costs)
        # Twice as many tokens may cost more than twice as much: so many are tried first.
        most = min(self._most, 2 * max(tokens for _, tokens in costs))
        return self._rounded(
            most if most * cost <= self._allowed_cost else int(self._allowed_cost / cost), streams
        )

    def stepped(self, streams: int, prefilled: int, seconds: float) -> None:
        """A step took so long, in which `streams` decoded beside `prefilled` tokens."""
        before = self._before
        about = _about(streams)
        self._before = (about, prefilled, seconds) if streams else None
        self._mixed_steps = self._mixed_steps + 1 if prefilled and streams else 0
        if not streams or before is None or before[0] != about or bool(before[1]) == bool(prefilled):
            return
        plain_s, mixed_s = (before[2], seconds) if prefilled else (seconds, before[2])
        tokens = prefilled or before[1]
        if (
            plain_s > 0.0 and 2 * tokens >= self._least
        ):  # the last piece of a prompt may be short: it says little
            costs = self._costs.setdefault(about, deque(maxlen=_REMEMBERED))
            costs.append((max(0.0, mixed_s / plain_s - 1.0) / tokens, tokens))

    def _nearest(self, about: int) -> deque[tuple[float, int]] | None:
        """What is known of as many streams, or of about as many: of fewer rather than of more."""
        if not self._costs:
            return None
        return self._costs[min(self._costs, key=lambda known: (abs(known - about), known))]

    def _rounded(self, tokens: int, streams: int) -> int:
        """Down to rows that need no padding, but not below the least; together with the rows of the streams."""
        least = _rows_from(streams + self._least)
        return max(least, _rows_up_to(streams + tokens)) - streams


def _about(streams: int) -> int:
    """One class for 1, for 2 and 3, for 4 to 7, …"""
    return streams.bit_length()


def _rows_from(rows: int) -> int:
    """The first count from here on that needs no padding."""
    return next((count for count in _ROWS if count >= rows), -(-rows // _ROWS[-1]) * _ROWS[-1])


def _rows_up_to(rows: int) -> int:
    """The last count up to here that needs no padding; 0: there is none."""
    if rows >= _ROWS[-1]:
        return rows // _ROWS[-1] * _ROWS[-1]
    return max((count for count in _ROWS if count <= rows), default=0)

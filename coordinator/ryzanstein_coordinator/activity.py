"""What the last minutes brought, second by second: throughput, latencies, load. For people who look now; what is to be
kept for longer is Prometheus's.

A second costs a few hundred bytes, and a token a few additions. Latencies are counted in buckets 5 % apart, so that
quantiles of any stretch of time can be told.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

#: Numbers are over so many seconds: long enough for a steady figure, short enough to see a stall.
WINDOW_S = 5
#: So many seconds are kept.
KEPT_S = 300

_STEP = math.log(1.05)


@dataclass(slots=True)
class _Second:
    """One second of the clock, by its whole number."""

    number: int
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    failed: int = 0
    #: Bucket of a latency → how often.
    first_tokens: Counter[int] = field(default_factory=Counter)
    gaps: Counter[int] = field(default_factory=Counter)
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The `WINDOW_S` seconds before a moment. Latencies are None where nothing was measured."""

    generated_tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    #: Requests that ended well, and the others (refused and cancelled ones are neither).
    finished_per_s: float = 0.0
    failed_per_s: float = 0.0
    first_token_p50_s: float | None = None
    first_token_p99_s: float | None = None
    inter_token_p50_s: float | None = None
    inter_token_p99_s: float | None = None
    #: At the end of the window.
    running: int = 0
    waiting: int = 0
    kv_cache_usage_ratio: float = 0.0


_WELL = ("stop", "length")
_BADLY = ("error", "unavailable", "deadline")


class Activity:
    """Counts, and tells. All calls come from the event loop."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[_Second] = deque(maxlen=KEPT_S)
        #: Requests that run, and that wait, as of now.
        self.counts: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._kv_cache_usage = 0.0

    # --- what happens

    def prompt_tokens(self, count: int) -> None:
        """Tokens of an admitted prompt."""
        self._now().prompt_tokens += count

    def generated_tokens(self, count: int) -> None:
        """Tokens that were recorded."""
        self._now().generated_tokens += count

    def first_token(self, seconds: float) -> None:
        """From admission to the first token of a request."""
        self._now().first_tokens[_bucket(seconds)] += 1

    def inter_token_latency(self, seconds: float, count: int) -> None:
        """`count` streams each waited so long for their next token."""
        self._now().gaps[_bucket(seconds)] += count

    def request_ended(self, outcome: str) -> None:
        """`outcome` is one of `observers.OUTCOMES`."""
        if outcome in _WELL:
            self._now().finished += 1
        elif outcome in _BADLY:
            self._now().failed += 1

    def kv_cache_usage(self, ratio: float) -> None:
        """Share of all KV blocks that is in use from now on."""
        self._kv_cache_usage = ratio
        self._now().kv_cache_usage = ratio

    # --- what is asked

    def recent(self) -> Point:
        """The last whole seconds (the one that runs is left out, or every rate would begin low), and the load now."""
        last = self._now().number - 1
        running, waiting = self.counts()
        point = _point(self._between(last - WINDOW_S + 1, last))
        return replace(point, running=running, waiting=waiting, kv_cache_usage_ratio=self._kv_cache_usage)

    def points(self, seconds: int) -> list[Point]:
        """One for each of the last whole seconds, oldest first; fewer if this began later."""
        last = self._now().number - 1
        first = max(self._seconds[0].number, last - min(seconds, KEPT_S) + 1)
        return [_point(self._between(at - WINDOW_S + 1, at)) for at in range(first, last + 1)]

    def _now(self) -> _Second:
        number = int(self._clock())
        if not self._seconds or self._seconds[-1].number < number:
            # Nobody called in the seconds between: nothing came or ended in them.
            since = number if not self._seconds else max(self._seconds[-1].number + 1, number - KEPT_S + 1)
            running, waiting = self.counts()
            self._seconds.extend(
                _Second(missed, running=running, waiting=waiting, kv_cache_usage=self._kv_cache_usage)
                for missed in range(since, number + 1)
            )
        return self._seconds[-1]

    def _between(self, first: int, last: int) -> list[_Second]:
        """Seconds are without gaps, so that an index follows from a number."""
        oldest = self._seconds[0].number
        return [self._seconds[at - oldest] for at in range(max(first, oldest), last + 1)]


def _point(seconds: list[_Second]) -> Point:
    if not seconds:
        return Point()
    length_s = len(seconds)
    first_tokens = _sum(second.first_tokens for second in seconds)
    gaps = _sum(second.gaps for second in seconds)
    latest = seconds[-1]
    return Point(
        generated_tokens_per_s=sum(second.generated_tokens for second in seconds) / length_s,
        prompt_tokens_per_s=sum(second.prompt_tokens for second in seconds) / length_s,
        finished_per_s=sum(second.finished for second in seconds) / length_s,
        failed_per_s=sum(second.failed for second in seconds) / length_s,
        first_token_p50_s=_quantile(first_tokens, 0.5),
        first_token_p99_s=_quantile(first_tokens, 0.99),
        inter_token_p50_s=_quantile(gaps, 0.5),
        inter_token_p99_s=_quantile(gaps, 0.99),
        running=latest.running,
        waiting=latest.waiting,
        kv_cache_usage_ratio=latest.kv_cache_usage,
    )


def _bucket(seconds: float) -> int:
    return math.floor(math.log(max(seconds, 1e-6)) / _STEP)


def _sum(counters: Iterable[Counter[int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for counter in counters:
        total.update(counter)
    return total


def _quantile(buckets: Counter[int], share: float) -> float | None:
    """The middle of the bucket in which the quantile is: right within 2.5 %."""
    wanted = share * buckets.total()
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= wanted:
            return math.exp((bucket + 0.5) * _STEP)
    return None

"""When requests are sent."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests per second on average, at random moments, whatever becomes of the earlier ones."""

    per_second: float

    def __str__(self) -> str:
        return f"{self.per_second:g}/s"


@dataclass(frozen=True, slots=True)
class Concurrency:
    """So many requests at any time: where one ends the next begins."""

    streams: int

    def __str__(self) -> str:
        return f"{self.streams} at once"


Load = Rate | Concurrency


@dataclass(frozen=True, slots=True)
class Limits:
    """When no more requests are sent: after so many, or so many seconds, whichever comes first. None: no limit."""

    requests: int | None
    duration_s: float | None


def poisson_times(rate: Rate, seed: int) -> Iterator[float]:
    """Moments of a Poisson process in seconds from the start, without end; equal seeds give equal moments.

    The first one is not at 0: the gaps are exponential with the mean 1 / rate (inverse transform; Knuth, TAOCP 2,
    3.4.1).
    """
    draw = random.Random(f"arrivals {seed}")  # noqa: S311 - no secret
    moment_s = 0.0
    while True:
        moment_s += draw.expovariate(rate.per_second)
        yield moment_s

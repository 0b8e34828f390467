"""Percentiles of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """How numbers are spread, in their own unit."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float


def spread(values: Iterable[float]) -> Spread | None:
    """Of any numbers; None if there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Spread(
        count=len(ordered),
        mean=sum(ordered) / len(ordered),
        min=ordered[0],
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of numbers in ascending order, linear between two of them: numpy's default, R's type 7 (Hyndman and Fan, 1996).

    Raises:
        ValueError: there are no numbers, or `percent` is outside of 0 to 100.
    """
    if not ordered or not 0 <= percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(ordered)} numbers")
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)

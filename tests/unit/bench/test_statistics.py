"""Percentiles, arrivals and lengths."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein.measuring.statistics import percentile, spread
from ryzanstein_client.bench.arrivals import Rate, poisson_times
from ryzanstein_client.bench.lengths import Length, parse_length

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50)


@given(NUMBERS)
def test_percentiles_are_those_of_the_standard_library(numbers: list[float]) -> None:
    ordered = sorted(numbers)
    expected = statistics.quantiles(ordered, n=100, method="inclusive")
    found = [percentile(ordered, percent) for percent in range(1, 100)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(NUMBERS)
def test_a_spread_is_in_order(numbers: list[float]) -> None:
    found = spread(numbers)
    assert found is not None
    assert found.count == len(numbers)
    assert found.min <= found.p50 <= found.p90 <= found.p99 <= found.max


def test_nothing_has_no_spread_and_no_percentile() -> None:
    assert spread([]) is None
    with pytest.raises(ValueError, match="no percentile 50 of 0 numbers"):
        percentile([], 50)
    with pytest.raises(ValueError, match="no percentile 101"):
        percentile([1.0], 101)


def test_arrivals_have_the_mean_and_the_spread_of_a_poisson_process() -> None:
    moments = list(itertools.islice(poisson_times(Rate(4.0), seed=1), 20_000))
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(
        0.25, rel=0.05
    )  # an exponential's mean and deviation are equal
    assert min(gaps) > 0


def test_equal_seeds_send_at_equal_moments_and_others_at_others() -> None:
    first, again, other = (list(itertools.islice(poisson_times(Rate(2.0), seed), 5)) for seed in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128", Length("fixed", 128)),
        ("64-512", Length("uniform", 64, 512)),
        ("normal:256:64", Length("normal", 256, 64)),
        ("exponential:30", Length("exponential", 30)),
    ],
)
def test_a_length_is_what_its_text_says(text: str, expected: Length) -> None:
    assert parse_length(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "0", "-5", "5-3", "1.5", "normal:1", "gamma:3", "0-4", "normal:0:3"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no length"):
        parse_length(text)


@pytest.mark.parametrize(
    ("text", "mean", "low", "high"),
    [("20", 20, 20, 20), ("10-30", 20, 10, 30), ("normal:20:5", 20, 1, 60), ("exponential:20", 20, 1, 400)],
)
def test_lengths_are_drawn_as_they_say(text: str, mean: float, low: int, high: int) -> None:
    draw, length = random.Random(3), parse_length(text)
    numbers = [length.draw(draw) for _ in range(5000)]
    assert statistics.mean(numbers) == pytest.approx(mean, rel=0.06)
    assert low <= min(numbers) <= max(numbers) <= high

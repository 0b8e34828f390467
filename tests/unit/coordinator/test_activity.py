"""The last minutes, second by second."""

from __future__ import annotations

import pytest

from ryzanstein_coordinator.activity import KEPT_S, WINDOW_S, Activity, Point


class Clock:
    now_s = 1000.25

    def __call__(self) -> float:
        return self.now_s


def test_rates_are_over_the_last_whole_seconds() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    for _ in range(10):
        activity.generated_tokens(50)
        activity.prompt_tokens(10)
        clock.now_s += 1
    activity.generated_tokens(7)  # of the second that runs
    point = activity.recent()
    assert (point.generated_tokens_per_s, point.prompt_tokens_per_s) == (50, 10)


def test_a_young_coordinator_does_not_divide_by_seconds_before_its_life() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    assert activity.recent() == Point()
    activity.generated_tokens(30)
    clock.now_s += 1
    assert activity.recent().generated_tokens_per_s == 30


def test_quantiles_are_right_within_a_fortieth() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    for milliseconds in range(1, 1001):
        activity.first_token(milliseconds / 1000)
    activity.inter_token_latency(0.02, 99)
    activity.inter_token_latency(3.0, 1)
    clock.now_s += 1
    point = activity.recent()
    assert point.first_token_p50_s == pytest.approx(0.5, rel=0.026)
    assert point.first_token_p99_s == pytest.approx(0.99, rel=0.026)
    assert point.inter_token_p50_s == pytest.approx(0.02, rel=0.026)
    assert point.inter_token_p99_s == pytest.approx(0.02, rel=0.026)


def test_what_was_not_measured_is_none_and_what_stood_still_is_zero() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    activity.counts = lambda: (3, 1)
    activity.generated_tokens(1)
    activity.first_token(0.1)
    clock.now_s += WINDOW_S + 1
    point = activity.recent()
    assert (point.generated_tokens_per_s, point.first_token_p50_s) == (0, None)
    assert (point.running, point.waiting) == (3, 1)


def test_ends_are_counted_as_well_or_failed_and_refused_ones_as_neither() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    for outcome in ("stop", "length", "error", "refused", "cancelled", "invalid"):
        activity.request_ended(outcome)
    clock.now_s += 1
    assert (activity.recent().finished_per_s, activity.recent().failed_per_s) == (2, 1)


def test_there_is_a_point_for_every_second_also_for_those_in_which_nothing_happened() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    activity.kv_cache_usage(0.5)
    clock.now_s += 40
    assert [point.kv_cache_usage_ratio for point in activity.points(180)] == [0.5] * 40
    assert len(activity.points(15)) == 15


def test_minutes_that_are_over_are_forgotten() -> None:
    clock = Clock()
    activity = Activity(clock=clock)
    activity.generated_tokens(1_000_000)
    clock.now_s += 50_000
    activity.generated_tokens(1)
    points = activity.points(100_000)
    assert len(points) < KEPT_S
    assert all(point.generated_tokens_per_s == 0 for point in points)

"""When a lost coordinator is called again."""

from __future__ import annotations

import itertools
import random

from ryzanstein_client.retry import Outage, ResumePolicy


def moments(outage: Outage, *, until_s: float) -> list[float]:
    """When it is called, if every attempt fails at once."""
    called, now_s = [0.0], 0.0
    while now_s < until_s:
        delay_s = outage.failed(now_s, limit_s=60.0)
        assert delay_s is not None
        now_s += delay_s
        called.append(now_s)
    return called


def test_whenever_the_coordinator_is_back_it_is_called_soon_in_proportion() -> None:
    for seed in range(200):
        called = moments(Outage(ResumePolicy(), random.Random(seed)), until_s=30.0)
        for before, after in itertools.pairwise(called):
            assert after - before <= max(0.05, 0.15 * before) + 1e-9
            assert after - before <= 0.5


def test_a_long_outage_is_not_hammered() -> None:
    called = moments(Outage(ResumePolicy(), random.Random(1)), until_s=50.0)
    assert len(called) < 200
    assert min(after - before for before, after in itertools.pairwise(called)) >= 0.025


def test_clients_of_one_coordinator_do_not_come_back_in_the_same_moment() -> None:
    first = [Outage(ResumePolicy(), random.Random(seed)).failed(0.0, 60.0) for seed in range(20)]
    assert len(set(first)) == 20

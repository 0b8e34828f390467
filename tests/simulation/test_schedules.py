"""Random schedules of faults, from seeds: no token lost, none twice, none another, and everything serves again.

`RYZANSTEIN_SCHEDULES` runs more of them; `python -m tests.simulation` is the long form. A failure prints its trace.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from .plan import plan_of
from .schedule import run_plan, run_seed

SCHEDULES = int(os.environ.get("RYZANSTEIN_SCHEDULES", "400"))
_BATCH = 50


@pytest.fixture(autouse=True)
def _collect_once() -> Iterator[None]:
    """A schedule leaves circles behind: collecting them once per test is twice as fast as all the time."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.mark.parametrize("first", range(0, SCHEDULES, _BATCH))
def test_whatever_happens_every_stream_ends_as_it_must(first: int) -> None:
    for seed in range(first, min(first + _BATCH, SCHEDULES)):
        run_seed(seed).check()


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_decides_everything(seed: int) -> None:
    assert run_plan(plan_of(seed), traced=True) == run_plan(plan_of(seed), traced=True)


def test_ticks_and_heartbeats_that_are_left_out_would_change_nothing() -> None:
    for seed in range(60):
        seldom, always = run_seed(seed), run_seed(seed, every_tick=True)
        always.check()
        assert seldom.endings == always.endings, f"seed {seed}"

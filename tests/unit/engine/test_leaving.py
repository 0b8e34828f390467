from __future__ import annotations

import pytest

from ryzanstein_shard_worker.leaving import ANSWER_S, IDLE_S, Standing, why_it_may_go

BUSY = Standing(in_group=True, busy=True, connected=True)
IDLE = Standing(in_group=True, busy=False, connected=True)
OUTSIDE = Standing(in_group=False, busy=False, connected=True)
CUT_OFF = Standing(in_group=False, busy=False, connected=False)


def why(standing: Standing, *, waited_s: float = 1.0, lasting_s: float = 1.0, timeout_s: float = 30.0) -> str:
    return why_it_may_go(standing, waited_s=waited_s, lasting_s=lasting_s, timeout_s=timeout_s)


def test_a_rank_whose_streams_run_stays_until_the_time_is_up() -> None:
    assert why(BUSY, waited_s=29.9, lasting_s=29.9) == ""
    assert why(BUSY, waited_s=30.0, lasting_s=30.0) == "the time is up"


def test_a_rank_goes_when_its_group_has_had_nothing_to_do_for_a_moment() -> None:
    assert why(IDLE, lasting_s=IDLE_S - 0.1) == ""
    assert why(IDLE, lasting_s=IDLE_S) == "no stream runs"


def test_whoever_has_no_rank_waits_for_the_coordinator_to_say_that_it_may_go() -> None:
    assert why(OUTSIDE, lasting_s=ANSWER_S - 0.1) == ""
    assert why(OUTSIDE, lasting_s=ANSWER_S) == "it has no rank"


def test_nobody_has_to_say_so_while_the_coordinator_is_away() -> None:
    assert why(CUT_OFF, waited_s=0.0, lasting_s=0.0) == "it has no rank, and the coordinator is away"


@pytest.mark.parametrize("standing", [BUSY, IDLE, OUTSIDE])
def test_without_time_it_goes_at_once(standing: Standing) -> None:
    assert why(standing, waited_s=0.0, lasting_s=0.0, timeout_s=0.0) == "the time is up"

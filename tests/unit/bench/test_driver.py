"""How requests are sent and what is noted of them, on a clock that leaps."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

import pytest

from ryzanstein_client.bench.arrivals import Concurrency, Limits, Load, Rate, poisson_times
from ryzanstein_client.bench.drive import Driver, Exchange, Outcome
from ryzanstein_client.bench.fronts import AnswerError, RefusedError
from ryzanstein_client.bench.lengths import parse_length
from ryzanstein_client.bench.phases import decode_rate
from ryzanstein_client.bench.session import Plan, measure
from ryzanstein_client.bench.summary import Objectives, ServingResult, summarise
from ryzanstein_client.bench.workload import Ask

from .fronts import Leaping, ScriptedFront

ASK = Ask(max_tokens=3, prompt=(1, 2, 3, 4))


def leaping(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Leaping) as runner:
        runner.run(work)


def drive(front: ScriptedFront, load: Load, limits: Limits) -> tuple[list[Exchange], float]:
    """→ what was noted, and when all was over."""
    found: list[Any] = []

    async def main() -> None:
        driver = Driver(front, itertools.repeat(ASK), clock=asyncio.get_running_loop().time)
        await driver.run(load, limits, seed=5)
        found.extend([driver.exchanges, asyncio.get_running_loop().time()])

    leaping(main())
    return found[0], found[1]


def test_at_any_time_so_many_requests_run_until_all_were_sent() -> None:
    front = ScriptedFront()
    exchanges, ended_s = drive(front, Concurrency(3), Limits(9, None))
    assert front.most_running == 3
    assert len(exchanges) == 9
    assert ended_s == pytest.approx(3 * 0.7)  # three after each other, of 0.5 + 2 * 0.1


def test_what_is_noted_is_what_a_user_waits_for() -> None:
    (exchange,), _ = drive(ScriptedFront(), Concurrency(1), Limits(1, None))
    assert exchange.outcome is Outcome.DONE
    assert exchange.first_token_s == pytest.approx(0.5)
    assert exchange.gaps_s == pytest.approx([0.1, 0.1])
    assert exchange.per_token_s == pytest.approx(0.1)
    assert exchange.ended_s == pytest.approx(0.7)
    assert (exchange.output_tokens, exchange.prompt_tokens) == (3, 4)


def test_no_request_is_sent_behind_the_duration_and_those_on_the_way_end() -> None:
    exchanges, ended_s = drive(ScriptedFront(), Concurrency(1), Limits(None, 1.0))
    assert [exchange.due_s for exchange in exchanges] == pytest.approx([0.0, 0.7])
    assert ended_s == pytest.approx(1.4)


def test_a_rate_sends_at_its_moments_whatever_becomes_of_earlier_requests() -> None:
    front = ScriptedFront(first_s=100.0)
    exchanges, _ = drive(front, Rate(10.0), Limits(20, None))
    moments = list(itertools.islice(poisson_times(Rate(10.0), 5), 20))
    assert [exchange.due_s for exchange in exchanges] == pytest.approx(moments)
    assert front.most_running == 20


def test_refusals_and_failures_are_counted_apart_and_in_no_time() -> None:
    fates: list[Exception | None] = [None, RefusedError(0.3), AnswerError("INTERNAL: a defect"), None]
    load, limits = Concurrency(1), Limits(4, None)
    exchanges, ended_s = drive(ScriptedFront(fate=fates.__getitem__), load, limits)
    assert ended_s == pytest.approx(0.7 + 0.3 + 0.1 + 0.7)  # who was refused does not come back at once
    result = summarise(exchanges, load, limits, Objectives(), ended_s)
    assert (result.sent, result.done, result.refused, result.failed) == (4, 2, 1, 1)
    assert result.failures == {"INTERNAL: a defect": 1}
    assert result.first_token_s is not None
    assert result.first_token_s.spread.count == 2
    assert result.goodput_per_s is None


def test_goodput_counts_requests_that_kept_all_objectives() -> None:
    slow, quick = Exchange(0.0, Outcome.DONE), Exchange(0.0, Outcome.DONE)
    slow.arrivals, slow.ended_s = [(0.9, 1), (1.0, 1)], 1.0
    quick.arrivals, quick.ended_s = [(0.1, 1), (1.0, 1)], 1.0
    refused = Exchange(0.0, Outcome.REFUSED)
    run = [slow, quick, refused]
    result = summarise(run, Rate(3.0), Limits(3, None), Objectives(first_token_s=0.5), ended_s=2.0)
    assert result.goodput_per_s == 0.5
    assert result.good_share == pytest.approx(1 / 3)
    result = summarise(run, Rate(3.0), Limits(3, None), Objectives(per_token_s=0.5), ended_s=2.0)
    assert result.goodput_per_s == 0.5  # the other one
    assert not Objectives(first_token_s=0.5, per_token_s=0.5).met(quick)
    assert not Objectives(end_to_end_s=0.9).met(quick)


def test_rates_count_only_while_requests_are_sent() -> None:
    within, behind = (
        Exchange(0.0, Outcome.DONE, prompt_tokens=4),
        Exchange(0.9, Outcome.DONE, prompt_tokens=4),
    )
    within.arrivals, within.ended_s = [(0.2, 2), (0.8, 2)], 0.8
    behind.arrivals, behind.ended_s = [(0.95, 1), (3.0, 3)], 3.0
    result = summarise([within, behind], Rate(2.0), Limits(None, 1.0), Objectives(), ended_s=3.0)
    assert (result.seconds, result.requests_per_s, result.output_tokens_per_s) == (1.0, 1.0, 5.0)
    assert result.done == 2


def test_decoding_counts_while_all_streams_decode() -> None:
    early, late = Exchange(0.0, Outcome.DONE), Exchange(0.0, Outcome.DONE)
    early.arrivals = [(0.0, 1), (1.0, 1), (2.0, 1), (3.0, 1)]
    late.arrivals = [(1.0, 1), (2.0, 2), (4.0, 1)]
    assert decode_rate([early, late]) == (2 + 2) / 2  # from 1.0 to 3.0: two of each
    late.arrivals = [(3.0, 1), (4.0, 1)]
    with pytest.raises(ValueError, match="never decoded at the same time"):
        decode_rate([early, late])


def plan(*loads: Load, warm_up: int = 2) -> Plan:
    return Plan(
        loads=loads,
        limits=Limits(3, None),
        prompt=parse_length("2-6"),
        output=parse_length("3"),
        warm_up=warm_up,
        objectives=Objectives(),
    )


def test_a_session_warms_up_before_each_run_and_keeps_nothing_of_it() -> None:
    front, results = ScriptedFront(), list[ServingResult]()
    leaping(measure(lambda: _ready(front), plan(Concurrency(1), Rate(5.0)), results.append))
    assert [result.load for result in results] == ["1 at once", "5/s"]
    assert [result.sent for result in results] == [3, 3]
    assert len(front.asked) == 2 * (3 + 2)
    assert all(2 <= len(ask.prompt) <= 6 and set(ask.prompt) <= {11, 12, 13} for ask in front.asked)


def test_an_interrupted_run_is_told_with_what_it_has() -> None:
    results: list[ServingResult] = []

    async def interrupted() -> None:
        user = asyncio.current_task()
        assert user is not None

        def fate(number: int) -> None:
            if number == 1:
                user.cancel()  # as Ctrl-C does

        front = ScriptedFront(fate=fate)
        await measure(lambda: _ready(front), plan(Concurrency(1), warm_up=0), results.append)

    with pytest.raises(asyncio.CancelledError):
        leaping(interrupted())
    assert [(result.done, result.interrupted) for result in results] == [(1, 1)]


async def _ready(front: ScriptedFront) -> ScriptedFront:
    return front

"""Who may come in, who is sent away and when they should come back: plain values in, decisions out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzanstein_coordinator.admission import (
    AdmissionLimits,
    Amount,
    Forecast,
    Load,
    RetryTimes,
    admit,
    can_be_met,
    retry_delay_s,
)
from ryzanstein_coordinator.service_rates import Pace, ServiceRates

ONE = Amount(requests=1, prompt_bytes=4, tokens=2)


def load(total: Amount, own: Amount | None = None, *, owners: int = 1, capacity_tokens: int = 10**6) -> Load:
    """Four requests run at once. Unless it is said, one owner has all."""
    return Load(
        total=total,
        own=total if own is None else own,
        owners=owners,
        capacity=4,
        capacity_tokens=capacity_tokens,
    )


# --- bounds


def test_eight_may_wait_for_each_one_that_runs() -> None:
    assert admit(load(Amount(requests=4 + 8 * 4 - 1)), AdmissionLimits(), ONE) is None
    refusal = admit(load(Amount(requests=4 + 8 * 4)), AdmissionLimits(), ONE)

    assert refusal is not None
    assert "32 requests are waiting" in refusal.reason


def test_all_prompts_together_are_bounded() -> None:
    limits = AdmissionLimits(max_prompt_bytes=1000)

    assert admit(load(Amount(9, 900)), limits, Amount(1, 100)) is None
    assert admit(load(Amount(9, 900)), limits, Amount(1, 101)) is not None


def test_so_are_the_tokens_that_they_ask_for() -> None:
    full = load(Amount(9, 0, 900), capacity_tokens=100)
    refusal = admit(full, AdmissionLimits(), Amount(1, 0, 1))
    assert refusal is not None
    assert "9 requests ask for 900 tokens, and with 1 more" in refusal.reason
    assert admit(load(Amount(9, 0, 899), capacity_tokens=100), AdmissionLimits(), Amount(1, 0, 1)) is None
    given = AdmissionLimits(max_waiting_tokens=50)
    assert admit(load(Amount(1, 0, 150), capacity_tokens=100), given, Amount(1, 0, 1)) is not None
    assert admit(load(Amount(1, 0, 149), capacity_tokens=100), given, Amount(1, 0, 1)) is None


def test_without_a_group_tokens_are_bounded_only_if_a_bound_is_given() -> None:
    unknown = Load(total=Amount(2, 0, 10**9), own=Amount(2, 0, 10**9), capacity=4, capacity_tokens=None)
    assert admit(unknown, AdmissionLimits(), ONE) is None
    assert admit(unknown, AdmissionLimits(max_waiting_tokens=10**6), ONE) is not None


def test_a_request_that_is_larger_than_the_bound_waits_for_nobody_when_it_is_alone() -> None:
    huge = Amount(1, 0, 10**9)
    assert admit(load(Amount(), capacity_tokens=100), AdmissionLimits(), huge) is None
    was_read = Amount(tokens=10**9)
    assert admit(load(Amount(1, 0, 5), capacity_tokens=100), AdmissionLimits(), was_read) is None
    assert admit(load(Amount(2, 0, 5), capacity_tokens=100), AdmissionLimits(), was_read) is not None


# --- several keys


def test_one_key_can_not_lock_the_others_out() -> None:
    full = Amount(requests=36)
    assert admit(load(full), AdmissionLimits(), ONE) is not None
    assert admit(load(full, Amount(), owners=2), AdmissionLimits(), ONE) is None
    share = Amount(requests=36 // 4)
    assert admit(load(full, share, owners=2), AdmissionLimits(), ONE) is not None


@given(st.lists(st.integers(0, 9), max_size=400), st.integers(1, 40))
def test_whoever_comes_the_whole_is_bounded_and_nobody_is_refused_who_has_less_than_a_share(
    owners: list[int], capacity: int
) -> None:
    held: dict[int, int] = {}
    most = capacity * 9
    for owner in owners:
        total, count = sum(held.values()), len({*held, owner})
        own = held.get(owner, 0)
        request = Load(total=Amount(total), own=Amount(own), owners=count, capacity=capacity)
        if admit(request, AdmissionLimits(), Amount(1)) is None:
            held[owner] = own + 1
        else:
            assert total >= most
            assert total >= most + most // 2 or own >= most // (2 * count)
    assert sum(held.values()) <= most + most // 2


# --- coming back


@given(st.integers(0, 10**6), st.floats(0, 1e6))
def test_a_retry_delay_is_between_a_tenth_of_a_second_and_half_a_minute(ahead: int, rate: float) -> None:
    assert 0.1 <= retry_delay_s(ahead, rate) <= 30.0


def test_those_who_are_refused_are_told_to_come_one_after_the_other() -> None:
    times = RetryTimes()
    for moment in range(11):
        times.ended(moment / 10)  # ten per second

    assert [times.refused(1.0) for _ in range(3)] == pytest.approx([0.1, 2 / 11, 3 / 11])


# --- deadlines


MEASURED = Pace(0.02, 0.01)


def forecast(tokens_ahead: float = 0.0, pace: Pace | None = MEASURED) -> Forecast:
    return Forecast(tokens_ahead=tokens_ahead, capacity=10, pace=pace)


def test_nobody_is_refused_on_a_guess() -> None:
    assert can_be_met(0.001, 10**6, forecast(10**9, pace=None)) is None


def test_a_deadline_that_what_waits_takes_longer_than_is_refused_at_once() -> None:
    refusal = can_be_met(1.0, 1, forecast(tokens_ahead=5000.0))  # 10 s
    assert refusal is not None
    assert refusal.reason == "about 10 s of other requests' tokens go before it; it can't be done within 1 s"
    assert not refusal.hopeless
    assert refusal.not_within_s == 10 / 2 - 1
    assert can_be_met(10.0, 1, forecast(tokens_ahead=5000.0)) is None
    assert can_be_met(6.0, 1, forecast(tokens_ahead=5000.0)) is None  # what was measured may be wrong by half


def test_a_deadline_that_the_request_itself_takes_longer_than_is_hopeless() -> None:
    refusal = can_be_met(1.0, 1001, forecast())
    assert refusal is not None
    assert refusal.hopeless
    assert "1001 tokens take about 10 s, at 10 ms each" in refusal.reason
    assert can_be_met(11.0, 1001, forecast()) is None


def test_rates_are_known_when_enough_was_measured() -> None:
    rates = ServiceRates()
    for _ in range(31):
        rates.stepped(0.0, {0.02: 5, 0.5: 1})
    for _ in range(7):
        rates.ended(100)
    assert (rates.pace(0.0), rates.output_tokens, rates.request_s(0.0)) == (None, None, None)
    rates.stepped(0.0, {9.0: 1})  # a recovery
    rates.stepped(0.0, {})
    rates.ended(20)
    assert (rates.pace(0.0), rates.output_tokens, rates.request_s(0.0)) == (Pace(0.02, 0.02), 90.0, 1.8)


def test_rates_follow_what_is_measured() -> None:
    rates = ServiceRates()
    for step in range(1000):
        rates.stepped(0.01 * step, {0.02 if step < 500 else 0.01: 3})
        rates.ended(step // 900)
    assert (rates.pace(10.0), rates.output_tokens) == (Pace(0.01, 0.01), 1.0)


def test_one_step_in_ten_tells_how_fast_it_may_be() -> None:
    rates = ServiceRates()
    for step in range(100):
        rates.stepped(0.0, {0.01 if step % 9 == 0 else 0.05: 3})
    assert rates.pace(0.0) == Pace(0.05, 0.01)


def test_what_was_measured_a_while_ago_says_nothing_about_now() -> None:
    """Else whoever is refused for a slow hour would be refused for ever: nothing else would be measured."""
    rates = ServiceRates()
    for step in range(100):
        rates.stepped(0.1 * step, {1.0: 3})
    assert rates.pace(30.0) == Pace(1.0, 1.0)
    assert rates.pace(38.0) is None

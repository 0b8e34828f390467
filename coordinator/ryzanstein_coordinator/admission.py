"""Whether one more request may wait, and when a refused one should come back. Pure: numbers in, decision
out.

Bounded are the requests, the bytes of their prompts, and the tokens that they ask for. Each bound leaves room for keys
that have little here: one key alone can fill it, and then another that has less than its share still comes in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .service_rates import Pace

#: Requests that may wait for each one that can run; and tokens for each that the KV caches hold.
WAITING_PER_RUNNING = 8

_SHORTEST_RETRY_S = 0.1
_LONGEST_RETRY_S = 30.0
#: Endings that the rate is taken from.
_RATE_WINDOW = 64
#: What was measured may be wrong by this factor before a request is refused for it that could have been served.
_DOUBT = 2.0


@dataclass(frozen=True, slots=True)
class Amount:
    """What requests that have not ended hold."""

    requests: int = 0
    #: Of prompts: their text while they are not tokenised, else 4 bytes per token.
    prompt_bytes: int = 0
    #: Of prompts, as far as they are tokenised, and of the outputs that are expected.
    tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.requests + other.requests,
            self.prompt_bytes + other.prompt_bytes,
            self.tokens + other.tokens,
        )

    def __sub__(self, other: Amount) -> Amount:
        return self + Amount(-other.requests, -other.prompt_bytes, -other.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds of what the coordinator keeps for requests that have not ended."""

    #: Requests that wait for a place. None: WAITING_PER_RUNNING times as many as can run.
    max_waiting: int | None = None
    #: Tokens, of prompts and expected outputs, that wait for room in a KV cache. None: WAITING_PER_RUNNING times as
    #: many as fit.
    max_waiting_tokens: int | None = None
    max_prompt_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What decides over one more request."""

    #: Of all that are admitted and have not ended, those that are being tokenised included.
    total: Amount
    #: Of these, the owner's whose request comes.
    own: Amount = Amount()
    #: Owners who have any, the one whose request comes included.
    owners: int = 1
    #: Sequences that all groups run at once.
    capacity: int
    #: Tokens that their KV caches hold; None: no group has said.
    capacity_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not."""

    reason: str
    #: Asking again would not help.
    hopeless: bool = False
    #: Sooner it would not either.
    not_within_s: float = 0.0


def admit(load: Load, limits: AdmissionLimits, new: Amount) -> Refusal | None:
    """None: it may come in. What is 0 of `new` is not looked at; without requests it is more of one that is there."""
    total = load.total
    most_waiting = WAITING_PER_RUNNING * load.capacity if limits.max_waiting is None else limits.max_waiting
    if _over(load, total.requests, load.own.requests, new.requests, load.capacity + most_waiting):
        waiting = max(0, total.requests - load.capacity)
        return Refusal(f"{waiting} requests are waiting, which is the most that may")
    if _over(load, total.prompt_bytes, load.own.prompt_bytes, new.prompt_bytes, limits.max_prompt_bytes):
        return Refusal(
            f"the prompts of {total.requests} requests hold {total.prompt_bytes} bytes, and with "
            f"{new.prompt_bytes} more they would hold more than {limits.max_prompt_bytes}"
        )
    most_tokens = _most_tokens(load, limits)
    # A request that is larger than that by itself is let in when there is nothing else.
    alone = total.requests == (0 if new.requests else 1)
    if (
        most_tokens is not None
        and not alone
        and _over(load, total.tokens, load.own.tokens, new.tokens, most_tokens)
    ):
        return Refusal(
            f"{total.requests} requests ask for {total.tokens} tokens, and with {new.tokens} more they would ask for "
            f"more than {most_tokens}"
        )
    return None


def _most_tokens(load: Load, limits: AdmissionLimits) -> int | None:
    if limits.max_waiting_tokens is not None:
        return (load.capacity_tokens or 0) + limits.max_waiting_tokens
    return None if load.capacity_tokens is None else (1 + WAITING_PER_RUNNING) * load.capacity_tokens


def _over(load: Load, total: int, own: int, new: int, most: int) -> bool:
    """Half as much again is kept for owners with less than their share, so that no key can lock the others out."""
    if not new or total + new <= most:
        return False
    return total + new > most + most // 2 or own + new > most // (2 * load.owners)


def retry_delay_s(refused_ahead: int, endings_per_s: float) -> float:
    """Those who were refused queue up in time: each is told to come when about its own place gets free.

    Without a rate (nothing has ended yet) one second.
    """
    if endings_per_s <= 0.0:
        return 1.0
    return min(_LONGEST_RETRY_S, max(_SHORTEST_RETRY_S, (refused_ahead + 1) / endings_per_s))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a request has before it, by what was measured."""

    #: Output tokens of requests that go before it.
    tokens_ahead: float
    #: Sequences that all groups run at once.
    capacity: int
    #: None: not measured of late.
    pace: Pace | None


def can_be_met(timeout_s: float, least_tokens: int, forecast: Forecast) -> Refusal | None:
    """Why a request of at least so many tokens can't be done in time, if it is sure that it can't. None: it may be."""
    pace = forecast.pace
    if pace is None:
        return None
    own_s = max(0, least_tokens - 1) * pace.fastest_s
    if own_s / _DOUBT > timeout_s:
        return Refusal(
            f"{least_tokens} tokens take about {own_s:.3g} s, at {pace.fastest_s * 1000:.3g} ms each; "
            f"they can't be generated within {timeout_s:.3g} s",
            hopeless=True,
        )
    wait_s = forecast.tokens_ahead * pace.token_s / forecast.capacity
    if (wait_s + own_s) / _DOUBT > timeout_s:
        return Refusal(
            f"about {wait_s:.3g} s of other requests' tokens go before it; it can't be done within {timeout_s:.3g} s",
            not_within_s=min(_LONGEST_RETRY_S, (wait_s + own_s) / _DOUBT - timeout_s),
        )
    return None


class RetryTimes:
    """When those who are refused should come back. Remembers how fast requests end, and how many were sent away."""

    def __init__(self) -> None:
        self._endings: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._refused_ahead = 0

    def refused(self, now: float, endings_per_s: float | None = None) -> float:
        """A request is sent away; seconds after which it should ask again. `endings_per_s`: while all places are taken,
        if that is known. Else the last endings tell, also of times when there was little to do."""
        if endings_per_s is None:
            since_s = now - self._endings[0] if self._endings else 0.0
            endings_per_s = len(self._endings) / max(since_s, 1e-3) if self._endings else 0.0
        delay_s = retry_delay_s(self._refused_ahead, endings_per_s)
        self._refused_ahead += 1
        return delay_s

    def ended(self, now: float) -> None:
        """A request ended: one of those that were sent away finds a place."""
        self._endings.append(now)
        self._refused_ahead = max(0, self._refused_ahead - 1)

"""How long and how often a lost coordinator is called again. No I/O and no clock: the time is passed in."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .errors import Disconnected, InvalidRequest
from .status import CallFailed, error_from

_DELAY_OF_OUTAGE = 0.15


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How long a lost connection is tried again. All in seconds."""

    #: Before the coordinator has answered for the first time, or has taken the request: one that stops, or has no group
    #: that serves, says when to try again.
    connect_timeout_s: float = 5.0
    #: Afterwards: a restarted coordinator must be back within it. Counts only the time without a connection.
    resume_timeout_s: float = 60.0
    first_delay_s: float = 0.05
    longest_delay_s: float = 0.5

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "resume_timeout_s"):
            if not getattr(self, name) >= 0:
                raise InvalidRequest(
                    f"{name} is {getattr(self, name)!r}; it must be 0 or a number of seconds"
                )


class Outage:
    """The time without a connection since something new arrived, and the wait before the next attempt."""

    def __init__(self, policy: ResumePolicy, jitter: random.Random) -> None:
        self._policy = policy
        self._jitter = jitter
        self._since_s: float | None = None
        self._before_s = 0.0
        self.attempts = 0

    def elapsed_s(self, now_s: float) -> float:
        """Seconds without a connection."""
        return self._before_s + (now_s - self._since_s if self._since_s is not None else 0.0)

    def failed(self, now_s: float, limit_s: float, at_least_s: float = 0.0) -> float | None:
        """An attempt failed. Seconds to wait before the next; None: the limit is reached."""
        if self._since_s is None:
            self._since_s = now_s
        left_s = limit_s - self.elapsed_s(now_s)
        if left_s <= 0:
            self.attempts += 1
            return None
        # In proportion to the outage: a coordinator that is back after a second is not kept waiting for half of one.
        delay_s = _DELAY_OF_OUTAGE * self.elapsed_s(now_s)
        delay_s = min(max(delay_s, self._policy.first_delay_s), self._policy.longest_delay_s)
        self.attempts += 1
        # Clients that lost the same coordinator must not all come back in the same moment.
        delay_s *= 0.5 + 0.5 * self._jitter.random()
        return min(max(delay_s, at_least_s), left_s)

    def connected(self, now_s: float) -> None:
        """The other side answered. It only ends the outage if something new follows."""
        self._before_s = self.elapsed_s(now_s)
        self._since_s = None

    def over(self) -> None:
        """Something new arrived."""
        self._since_s = None
        self._before_s = 0.0
        self.attempts = 0


class UnaryRetry:
    """The attempts of a call that may be repeated because it changes nothing, or the same thing once."""

    def __init__(self, policy: ResumePolicy, address: str) -> None:
        self._limit_s = policy.connect_timeout_s
        self._address = address
        self._outage = Outage(policy, random.Random())  # noqa: S311 - spreads retries, guards nothing

    def on_success(self) -> None:
        """Something arrived: what fails later is a new outage."""
        self._outage.over()

    def on_failure(self, failure: CallFailed, now_s: float) -> float:
        """Seconds to wait before the next attempt; raises the error to give up with."""
        if not failure.broken:
            raise error_from(failure) from failure
        delay_s = self._outage.failed(now_s, self._limit_s)
        if delay_s is None:
            attempts, seconds = self._outage.attempts, self._outage.elapsed_s(now_s)
            raise given_up(self._address, failure, attempts=attempts, seconds=seconds) from failure
        return delay_s


def given_up(
    address: str,
    failure: CallFailed,
    *,
    attempts: int,
    seconds: float,
    lost: str = "",
    tokens_received: int = 0,
) -> Disconnected:
    """The error that says what was tried. `lost`: how far the stream had come, if it had begun."""
    what = (
        f"lost the coordinator at {address} after {lost}"
        if lost
        else f"can't reach the coordinator at {address}"
    )
    tried = f"tried {attempts} times in {seconds:.1f} s" if attempts > 1 else "tried once"
    return Disconnected(f"{what}, {tried} ({failure})", attempts=attempts, tokens_received=tokens_received)

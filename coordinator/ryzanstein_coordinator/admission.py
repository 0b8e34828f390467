"""Whether one more request may wait, and when a refused one should come back. Pure: numbers in, decision
out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

#: Requests that may wait for each one that can run.
WAITING_PER_RUNNING = 8

_SHORTEST_RETRY_S = 0.1
_LONGEST_RETRY_S = 30.0
#: Endings that the rate is taken from.
_RATE_WINDOW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """Bounds of what the coordinator keeps for requests that have not ended."""

    #: Requests that wait for a place. None: WAITING_PER_RUNNING times as many as can run.
    max_waiting: int | None = None
    #: Of all prompts together, as text while they are not tokenised, else 4 bytes per token.
    max_prompt_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What decides over one more request."""

    #: Admitted and not ended, those that are being tokenised included.
    unfinished: int
    #: Sequences that all groups run at once.
    capacity: int
    prompt_bytes: int
    #: Requests that were refused and told to come back, and whose turn has not come.
    refused_ahead: int
    endings_per_s: float


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why not, and after how long to ask again."""

    reason: str
    retry_after_s: float


def admit(load: Load, limits: AdmissionLimits, *, new_bytes: int) -> Refusal | None:
    """None: it may come in."""
    waiting = max(0, load.unfinished - load.capacity)
    most = WAITING_PER_RUNNING * load.capacity if limits.max_waiting is None else limits.max_waiting
    retry_after_s = retry_delay_s(load.refused_ahead, load.endings_per_s)
    if load.unfinished >= load.capacity + most:
        return Refusal(f"{waiting} requests are waiting, which is the most that may", retry_after_s)
    if load.prompt_bytes + new_bytes > limits.max_prompt_bytes:
        return Refusal(
            f"the prompts of {load.unfinished} requests hold {load.prompt_bytes} bytes, and with {new_bytes} "
            f"more they would hold more than {limits.max_prompt_bytes}",
            retry_after_s,
        )
    return None


def retry_delay_s(refused_ahead: int, endings_per_s: float) -> float:
    """Those who were refused queue up in time: each is told to come when about its own place gets free.

    Without a rate (nothing has ended yet) one second.
    """
    if endings_per_s <= 0.0:
        return 1.0
    return min(_LONGEST_RETRY_S, max(_SHORTEST_RETRY_S, (refused_ahead + 1) / endings_per_s))


class AdmissionGate:
    """Remembers what `admit` needs of the past: how fast requests end, and how many were sent away."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._endings: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._refused_ahead = 0

    def ask(
        self, now: float, *, unfinished: int, capacity: int, prompt_bytes: int, new_bytes: int
    ) -> Refusal | None:
        """None: it may come in."""
        load = Load(
            unfinished=unfinished,
            capacity=capacity,
            prompt_bytes=prompt_bytes,
            refused_ahead=self._refused_ahead,
            endings_per_s=self.endings_per_s(now),
        )
        refusal = admit(load, self._limits, new_bytes=new_bytes)
        if refusal is not None:
            self._refused_ahead += 1
        return refusal

    def ended(self, now: float) -> None:
        """A request ended: one of those that were sent away finds a place."""
        self._endings.append(now)
        self._refused_ahead = max(0, self._refused_ahead - 1)

    def endings_per_s(self, now: float) -> float:
        """Over the last few endings; 0 before the first."""
        if not self._endings:
            return 0.0
        return len(self._endings) / max(now - self._endings[0], 1e-3)

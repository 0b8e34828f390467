"""Sends requests and notes when their tokens come."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from .arrivals import Concurrency, Limits, Load, Rate, poisson_times
from .fronts import AnswerError, Front, RefusedError
from .workload import Ask

#: One who was refused does not come back sooner, nor one whose request failed.
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0


class Outcome(StrEnum):
    """How a request ended."""

    DONE = "done"
    #: There was no place for it.
    REFUSED = "refused"
    FAILED = "failed"
    #: Whoever measures went away.
    INTERRUPTED = "interrupted"


@dataclass(slots=True)
class Exchange:
    """One request. Moments in seconds since the run began."""

    #: When it was due. What is late before it is sent counts as waiting, or slow measuring would look like a fast
    #: server ("coordinated omission", G. Tene).
    due_s: float
    outcome: Outcome = Outcome.INTERRUPTED
    reason: str = ""
    prompt_tokens: int = 0
    #: Moment, and how many tokens came then.
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    ended_s: float = 0.0

    @property
    def output_tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def first_token_s(self) -> float | None:
        """Waited for it."""
        return self.arrivals[0][0] - self.due_s if self.arrivals else None

    @property
    def gaps_s(self) -> list[float]:
        """Between one arrival and the next."""
        return [after[0] - before[0] for before, after in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def per_token_s(self) -> float | None:
        """Mean time per token after the first ones."""
        later = sum(count for _, count in self.arrivals[1:])
        return (self.arrivals[-1][0] - self.arrivals[0][0]) / later if later else None


class Driver:
    """One run of one load. `exchanges` grows as they begin; it stays readable when the run is interrupted."""

    def __init__(
        self,
        front: Front,
        asks: Iterator[Ask],
        *,
        clock: Callable[[], float] = time.perf_counter,
        ended: Callable[[Exchange], None] = lambda _: None,
    ) -> None:
        """`ended`: told of every request at its end."""
        self._front = front
        self._asks = asks
        self._clock = clock
        self._ended = ended
        self._begun_s = clock()
        self.exchanges: list[Exchange] = []

    async def run(self, load: Load, limits: Limits, seed: int) -> None:
        """Sends until a limit is reached, and waits for the last end."""
        self._begun_s = self._clock()
        if isinstance(load, Rate):
            await self._at_moments(load, limits, seed)
        else:
            await self._at_once(load, limits)

    async def warm_up(self, count: int) -> None:
        """So many requests at once, of which nothing is kept.

        Raises:
            AnswerError: one failed: nothing can be measured so.
        """
        asks = [next(self._asks) for _ in range(count)]
        async with asyncio.TaskGroup() as group:
            for ask in asks:
                group.create_task(self._unless_refused(ask))

    async def _unless_refused(self, ask: Ask) -> None:
        with contextlib.suppress(RefusedError):  # it is warm, then
            await self._front.run(ask, lambda _: None)

    async def _at_moments(self, rate: Rate, limits: Limits, seed: int) -> None:
        async with asyncio.TaskGroup() as group:
            for number, due_s in enumerate(poisson_times(rate, seed)):
                if self._is_over(number, due_s, limits):
                    return
                await asyncio.sleep(max(0.0, due_s - self._now_s()))
                group.create_task(self._one(due_s))

    async def _at_once(self, load: Concurrency, limits: Limits) -> None:
        sent = 0

        async def user() -> None:
            nonlocal sent
            while not self._is_over(sent, self._now_s(), limits):
                sent += 1
                await asyncio.sleep(await self._one(self._now_s()))

        async with asyncio.TaskGroup() as group:
            for _ in range(load.streams):
                group.create_task(user())

    @staticmethod
    def _is_over(sent: int, now_s: float, limits: Limits) -> bool:
        return (limits.requests is not None and sent >= limits.requests) or (
            limits.duration_s is not None and now_s >= limits.duration_s
        )

    async def _one(self, due_s: float) -> float:
        """→ seconds after which the next one makes sense."""
        exchange = Exchange(due_s)
        self.exchanges.append(exchange)
        pause_s = 0.0
        try:
            exchange.prompt_tokens = await self._front.run(
                next(self._asks), lambda count: exchange.arrivals.append((self._now_s(), count))
            )
            exchange.outcome = Outcome.DONE
        except RefusedError as error:
            exchange.outcome, exchange.reason = Outcome.REFUSED, str(error)
            pause_s = min(max(error.retry_after_s, _PAUSE_S), _LONGEST_PAUSE_S)
        except AnswerError as error:
            exchange.outcome, exchange.reason = Outcome.FAILED, str(error)
            pause_s = _PAUSE_S
        finally:
            exchange.ended_s = self._now_s()
        self._ended(exchange)
        return pause_s

    def _now_s(self) -> float:
        return self._clock() - self._begun_s

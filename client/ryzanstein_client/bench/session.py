"""One run after the other against one way in: what `ryzanstein bench serving` does once its flags are read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ryzanstein.measuring.outputs import progress_bars

from .arrivals import Limits, Load
from .drive import Driver, Exchange
from .fronts import Front
from .lengths import Length
from .summary import Objectives, ServingResult, summarise
from .workload import Ask, from_file, synthetic

Add = Callable[[ServingResult], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured. `prompts`: a file in place of random prompts."""

    loads: tuple[Load, ...]
    limits: Limits
    prompt: Length
    output: Length
    prompts: Path | None = None
    warm_up: int = 2
    seed: int = 0
    objectives: Objectives

    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {
            "loads": [str(load) for load in self.loads],
            "requests": self.limits.requests,
            "duration_s": self.limits.duration_s,
            "warm_up": self.warm_up,
            "seed": self.seed,
            "prompts": str(self.prompts) if self.prompts else f"random, {self.prompt} tokens",
            "output_tokens": str(self.output),
            "slo_first_token_s": self.objectives.first_token_s,
            "slo_per_token_s": self.objectives.per_token_s,
            "slo_end_to_end_s": self.objectives.end_to_end_s,
        }


async def measure(front: Callable[[], Awaitable[Front]], plan: Plan, add: Add) -> None:
    """All loads. `front`: opens the way in, in the loop that uses it.

    Raises:
        RyzansteinError: nobody answers there. AnswerError: a request to warm up failed. ProgramError: the file of
            prompts can't be used.
    """
    entrance = await front()
    try:
        await entrance.check()
        if plan.prompts is not None:
            asks = from_file(plan.prompts, plan.output, plan.seed)
        else:
            asks = synthetic(await entrance.vocabulary(), plan.prompt, plan.output, plan.seed)
        with progress_bars() as bars:
            for load in plan.loads:
                await _measure_one(entrance, asks, load, plan, add, bars)
    finally:
        await entrance.aclose()


async def _measure_one(
    front: Front, asks: Iterator[Ask], load: Load, plan: Plan, add: Add, bars: Progress
) -> None:
    """What an interrupted run has is told, too."""
    limits = plan.limits
    task = bars.add_task(str(load), total=limits.requests or limits.duration_s, note="warming up")
    ended = tokens = 0

    def show(exchange: Exchange) -> None:
        nonlocal ended, tokens
        ended, tokens = ended + 1, tokens + exchange.output_tokens
        bars.update(
            task,
            completed=ended if limits.requests is not None else exchange.ended_s,
            note=f"{ended} requests, {tokens / max(exchange.ended_s, 1e-9):.0f} tokens/s",
        )

    driver = Driver(front, asks, ended=show)
    await driver.warm_up(plan.warm_up)
    begun_s = time.perf_counter()
    try:
        await driver.run(load, limits, plan.seed)
    finally:
        if driver.exchanges:
            passed_s = time.perf_counter() - begun_s
            add(summarise(driver.exchanges, load, limits, plan.objectives, passed_s))

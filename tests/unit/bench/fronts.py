"""A way in whose answers are scripted, on a clock that stands still unless somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ryzanstein_client.bench.fronts import Arrived
from ryzanstein_client.bench.workload import Ask

#: What becomes of the request with this number (from 0): raises, or nothing.
Fate = Callable[[int], Exception | None]


class ScriptedFront:
    """Every answer takes `first_s` to its first token, and `gap_s` to each later one."""

    def __init__(self, *, first_s: float = 0.5, gap_s: float = 0.1, fate: Fate = lambda _: None) -> None:
        self.first_s, self.gap_s, self.fate = first_s, gap_s, fate
        self.asked: list[Ask] = []
        self.running = self.most_running = 0

    async def check(self) -> None:
        return None

    async def vocabulary(self) -> list[int]:
        return [11, 12, 13]

    async def run(self, ask: Ask, arrived: Arrived) -> int:
        number = len(self.asked)
        self.asked.append(ask)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if (failure := self.fate(number)) is not None:
                raise failure
            await asyncio.sleep(self.first_s)
            arrived(1)
            for _ in range(ask.max_tokens - 1):
                await asyncio.sleep(self.gap_s)
                arrived(1)
        finally:
            self.running -= 1
        return len(ask.prompt)

    async def aclose(self) -> None:
        return None


class Leaping(asyncio.SelectorEventLoop):
    """A loop whose time passes at once when all that is left is waiting."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now_s = max(self._now_s, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]

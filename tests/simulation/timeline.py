"""What is to come, in the order of its moments; and an event loop for real coroutines that runs on it."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

Run = Callable[[], None]


class Timeline:
    """Moments are seconds. What is due at the same moment happens in the order in which it was asked for."""

    def __init__(self, now_s: float = 100.0) -> None:
        self.now_s = now_s
        self._queue: list[tuple[float, int, Run]] = []
        self._number = 0

    def at(self, moment_s: float, run: Run) -> None:
        self._number += 1
        heapq.heappush(self._queue, (moment_s, self._number, run))

    def after(self, delay_s: float, run: Run) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._number, run))

    def next_at(self) -> float | None:
        """The moment of what comes next; None: nothing does."""
        return self._queue[0][0] if self._queue else None

    def step(self) -> None:
        """Lets the next thing happen."""
        moment_s, _, run = heapq.heappop(self._queue)
        self.now_s = max(self.now_s, moment_s)
        run()


class _Handle:
    """A call to come, as asyncio wants it."""

    __slots__ = ("_args", "_callback", "_loop")

    def __init__(
        self, loop: SimulatedLoop, callback: Callable[..., object] | None, args: tuple[Any, ...]
    ) -> None:
        self._loop = loop
        self._callback = callback
        self._args = args

    def cancel(self) -> None:
        self._callback = None

    def cancelled(self) -> bool:
        return self._callback is None

    def run(self) -> None:
        if self._callback is not None:
            self._callback(*self._args)

    def due(self) -> None:
        """Its moment has come."""
        if self._callback is not None:
            self._loop.ready.append(self)
            self._loop.run_ready()


class SimulatedLoop(asyncio.AbstractEventLoop):
    """One process's event loop: real tasks, futures, events and timeouts on the timeline's clock.

    While it is `stopped` nothing runs, like in a process after SIGSTOP; `end` is kill -9.
    """

    def __init__(self, timeline: Timeline, on_defect: Callable[[str], None]) -> None:
        self._timeline = timeline
        self._on_defect = on_defect
        self.ready: deque[_Handle] = deque()
        self.stopped = False
        self.dead = False
        self._running = False

    def run_ready(self) -> None:
        """Runs what can run, until nothing can. Called again from inside, it does nothing."""
        if self._running or self.stopped or self.dead:
            return
        self._running = True
        ready = self.ready
        try:
            while ready:
                ready.popleft().run()
        finally:
            self._running = False

    def begin(self) -> None:
        """From now on this is the thread's loop, whoever calls into its process."""
        asyncio._set_running_loop(self)

    def resume(self) -> None:
        self.stopped = False
        self.run_ready()

    def end(self) -> None:
        asyncio._set_running_loop(None)
        self.dead = True
        self.ready.clear()

    # --- what asyncio asks of a loop

    def time(self) -> float:
        return self._timeline.now_s

    def call_soon(  # type: ignore[override]  # our own handles, without contexts
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        handle = _Handle(self, callback, args)
        if not self.dead:
            self.ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        return self.call_at(self._timeline.now_s + delay, callback, *args)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> _Handle:
        handle = _Handle(self, callback, args)
        if not self.dead:
            self._timeline.at(when, handle.due)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self.dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task that ended with an exception that nobody looked at is a defect; one that died with its
        process is not."""
        if not self.dead and "exception" in context:
            self._on_defect(f"{context.get('message', '')}: {context['exception']!r}")

"""The loop of the control plane: what happens goes into the pure deciders, what they ask for is carried out.

Everything runs in one event loop, and an event is applied the moment it is known: the time between the end of
a heartbeat stream and the calls that fence the survivors is the time of one decision.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from . import events
from .change_log import log_changes
from .control_plane import ControlPlane
from .events import Event
from .executor import Executor
from .state import ClusterState
from .watch import Changes


class ClusterObserver(Protocol):
    """Counts what happens; must return at once and must not raise."""

    def heartbeat(self, before: ClusterState, after: ClusterState, worker_id: str) -> None:
        """A heartbeat of this worker was taken in."""

    def changed(self, before: ClusterState, after: ClusterState) -> None:
        """Something other than telemetry changed."""


class ControlLoop:
    """Holds the state of the cluster, and is the only one that replaces it."""

    def __init__(
        self,
        control: ControlPlane,
        initial: ClusterState,
        *,
        clock: Callable[[], float],
        observers: Sequence[ClusterObserver] = (),
    ) -> None:
        self.state = initial
        self.changes = Changes()
        self.closed = False
        self._control = control
        self._clock = clock
        self._observers = tuple(observers)
        self._executor: Executor | None = None
        self._inbox: deque[Event] = deque()
        self._applying = False
        self._defect: Exception | None = None

    def start(self, executor: Executor, initial: ClusterState, tick_s: float) -> None:
        """Begins anew with `initial`, carries out by `executor`, and lets time pass every `tick_s`."""
        self.state = initial
        self._executor = executor
        executor.spawn(self._watch_clock(tick_s), "orchestrator")

    def close(self) -> None:
        """Nothing is decided any more, whatever happens."""
        self.closed = True

    def happened(self, event: Event) -> None:
        """Applies the event, and those that come of carrying out what was decided."""
        if self.closed:
            return
        self._inbox.append(event)
        if self._applying:
            return
        self._applying = True
        try:
            while self._inbox:
                self._apply(self._inbox.popleft())
        except Exception as defect:
            # What was decided is carried out in part only, and whoever brought the event can't mend that: the
            # program ends, and another one begins with what the workers say.
            self.closed = True
            self._defect = defect
            raise
        finally:
            self._applying = False

    def _apply(self, event: Event) -> None:
        before = self.state
        decision = self._control.step(self._clock(), before, event)
        self.state = decision.state
        for action in decision.actions:
            assert self._executor is not None, "the orchestrator was not started"
            self._executor.carry_out(action, decision.state)
        if isinstance(event, events.Beat):
            for observer in self._observers:
                observer.heartbeat(before, decision.state, event.worker_id)
        if decision.state.revision != before.revision:
            log_changes(before, decision.state)
            for observer in self._observers:
                observer.changed(before, decision.state)
            self.changes.notify()

    async def _watch_clock(self, tick_s: float) -> None:
        """Time is an event, too."""
        while not self.closed:
            self.happened(events.Tick())
            await asyncio.sleep(tick_s)
        if self._defect is not None:
            raise self._defect

"""Ticks and heartbeats, without those that would change nothing.

A real coordinator ticks four times per heartbeat, and every worker beats five times per lease. Nearly all of that
says that all is as before. Here a tick happens on the same grid, but only where time may decide something, and brings
with it the heartbeats that would have come since: what follows is the same (a test compares it with every tick).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ryzanstein_coordinator import events
from ryzanstein_coordinator.group_record import GroupRecord, Phase
from ryzanstein_coordinator.leader_stream import MARGIN_S
from ryzanstein_coordinator.standstills import lost_s

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .worker import Worker


class Ticks:
    """Of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._world = coordinator.world
        config = coordinator.config
        self._beat_s = config.heartbeat_interval_s
        self._grid_s = config.heartbeat_interval_s / 4
        # Heartbeats that come late enough to matter are taken in as they come.
        self._longest_s = config.lease_ttl_s * 0.45
        self._origin_s = self._world.now_s
        self._next_s = math.inf

    def plan(self) -> None:
        """Time may decide something at another moment than before."""
        now_s = self._world.timeline.now_s
        if self._world.every_tick:
            due_s = now_s
        else:
            due_s = min(self._due(now_s), self._coordinator.state.last_tick_s + self._longest_s)
        steps = max(
            math.ceil((due_s - self._origin_s) / self._grid_s - 1e-6),
            math.floor((now_s - self._origin_s) / self._grid_s + 1e-6) + 1,
        )
        at_s = self._origin_s + steps * self._grid_s
        if now_s < self._next_s <= at_s:
            return
        self._next_s = at_s
        self._world.timeline.at(at_s, lambda: self._tick(at_s))

    def count_skipped(self) -> None:
        """The ticks since the last one that would have decided nothing: the coordinator did not stand still."""
        coordinator = self._coordinator
        steps = math.floor((self._world.timeline.now_s - self._origin_s) / self._grid_s + 1e-6)
        last_s = self._origin_s + steps * self._grid_s
        if last_s > max(coordinator.state.last_tick_s, coordinator.awake_since_s) and coordinator.runs:
            coordinator.state = replace(coordinator.state, last_tick_s=last_s)

    def resumed(self) -> None:
        """The coordinator stood still, and its next tick is overdue."""
        self._next_s = math.inf
        self._coordinator.happened(events.Tick())
        self.catch_up_all()  # what waited in its sockets

    def catch_up(self, worker: Worker) -> None:
        """The last heartbeat that came while nothing had changed."""
        coordinator = self._coordinator
        record = coordinator.state.workers.get(worker.worker_id)
        before = coordinator.state.telemetry.get(worker.worker_id)
        if (
            record is None
            or before is None
            or record.incarnation != worker.incarnation
            or not (record.alive and record.heard and worker.membership.registered and self.beats(worker))
            or worker.membership.beats_under_way
        ):
            return
        now_s = self._world.timeline.now_s
        # Workers don't beat at the same moment.
        shift_s = worker.number * 0.37 * self._beat_s
        heard_s = now_s - worker.late_s - math.fmod(now_s + shift_s, self._beat_s)
        if heard_s > before.heard_at_s:
            worker.membership.beat_answered(coordinator.epoch_for(worker))
            coordinator.beat(worker, worker.report(heard_s))

    def catch_up_all(self) -> None:
        for worker in self._world.workers.values():
            self.catch_up(worker)

    def beats(self, worker: Worker) -> bool:
        """Its heartbeats come through."""
        return worker.runs and not worker.cut and not self._coordinator.cut and self._coordinator.runs

    def _tick(self, at_s: float) -> None:
        if at_s != self._next_s or not self._coordinator.alive:
            return
        self._next_s = math.inf
        if self._coordinator.runs:
            self.catch_up_all()
            self._coordinator.happened(events.Tick())

    def _due(self, now_s: float) -> float:
        """The next moment at which time may decide something, or one just passed: it may be early, never late."""
        past_s = now_s - 1.1 * self._grid_s
        return min((at_s for at_s in self._moments() if at_s >= past_s), default=math.inf)

    def _moments(self) -> Iterator[float]:
        coordinator, config, world = self._coordinator, self._coordinator.config, self._world
        state = coordinator.state
        for record in state.workers.values():
            if not record.alive:
                continue
            if record.fence_epoch and not record.fencing:
                yield record.fence_not_before_s
            yield record.load_not_before_s
            worker = coordinator.processes.get(record.incarnation)
            if worker is None or not worker.membership.registered or worker.late_s or not self.beats(worker):
                report = state.telemetry.get(record.worker_id)
                heard_s = max(
                    record.registered_at_s, state.lease_floor_s, 0.0 if report is None else report.heard_at_s
                )
                heard_s += lost_s(state.standstills, heard_s)
                yield heard_s + config.suspect_after_s
                yield heard_s + config.lease_ttl_s
        for group in state.groups:
            yield from self._of(group)
        for run in world.runs:
            if run.blocked_since_s is not None:
                for since_s in (run.blocked_since_s, run.last_step_s):
                    yield since_s + config.progress_deadline_s
                    yield since_s + config.progress_deadline_s + self._beat_s  # when it is told of

    def _of(self, group: GroupRecord) -> Iterator[float]:
        config = self._coordinator.config
        yield group.not_before_s
        match group.phase:
            case Phase.VACANT if group.vacant_since_s is not None:
                yield group.vacant_since_s + config.lease_ttl_s
                yield group.vacant_since_s + config.replacement_wait_s
            case Phase.FENCING:
                yield group.fence_deadline_s
            case Phase.SERVING if group.serving_since_s is not None:
                for after_s in (config.lease_ttl_s, config.lease_ttl_s + self._beat_s, config.stable_after_s):
                    yield group.serving_since_s + after_s
                if group.stream.alive_since_s is None:
                    state = self._coordinator.state
                    silent_s = max(group.stream.silent_since_s, state.lease_floor_s)
                    yield silent_s + lost_s(state.standstills, silent_s) + config.lease_ttl_s + MARGIN_S

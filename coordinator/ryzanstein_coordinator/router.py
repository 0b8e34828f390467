"""Requests to groups and tokens back: one Execute stream per group, replay after a fault.

The orchestrator calls `group_ready` and `group_lost`; the front door calls `enqueue`, `end` and `extend`.
All in one event loop. What it keeps true, whatever breaks: the tokens of a request are recorded once each
and in order, because a message counts only if it belongs to the stream that is open now, names a sequence
that this stream was given, and continues exactly where the record ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import structlog

from ryzanstein.failpoints import failpoint
from ryzanstein.v1.shard_worker_pb2 import EngineLimits, ExecuteResponse
from ryzanstein.wire import unavailable

from .admission import Forecast
from .dispatch import choose_group, replay_order, tokens_ahead
from .group_record import Cause
from .observers import GroupEvents, NoGroupEvents, NoMetrics, RequestMetrics
from .patience import RouterConfig, overdue
from .recording import Broken, broken_off, record_from_caller, record_step, tell_step
from .requests import Clock, Ending, Place, RequestRecord
from .serving_group import ServingGroup
from .serving_groups import ServingGroups
from .suspicion import after_break
from .waiting_queue import WaitingQueue

if TYPE_CHECKING:  # the name exists for type checkers only
    from ryzanstein.v1.shard_worker_pb2_grpc import ShardWorkerServiceAsyncStub

__all__ = ["Router", "RouterConfig"]

_log = structlog.get_logger()


class Router:
    """See the module. `clock` must be the one that the front door uses."""

    def __init__(
        self,
        config: RouterConfig | None = None,
        *,
        metrics: RequestMetrics | None = None,
        events: GroupEvents | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._config = config or RouterConfig()
        self._metrics: RequestMetrics = metrics or NoMetrics()
        self._events: GroupEvents = events or NoGroupEvents()
        self._clock = clock
        self._on_ended: Callable[[RequestRecord], None] = lambda _record: None
        self._on_changed: Callable[[], None] = lambda: None
        self._groups = ServingGroups(self._config, now=clock())
        self._queue = WaitingQueue()
        self._last_sequence_id = 0

    def connect(self, *, on_ended: Callable[[RequestRecord], None], on_changed: Callable[[], None]) -> None:
        """The front door: told of every request that ends, whatever ended it, and when `tick` may be due
        sooner than it said."""
        self._on_ended, self._on_changed = on_ended, on_changed

    # --- what the orchestrator calls

    def group_ready(
        self, group_id: str, epoch: int, stub: ShardWorkerServiceAsyncStub, limits: EngineLimits
    ) -> int:
        """The group serves in this epoch, led by the worker behind `stub`.

        Returns how many requests that a group had before are submitted again. An epoch older than the known
        one is ignored.
        """
        group = self._groups.of(group_id)
        if epoch < group.epoch:
            _log.warning("group_ready_of_old_epoch", group=group_id, epoch=epoch, current=group.epoch)
            return 0
        group.close()
        self._wait(group.stall())
        group.epoch, group.limits, group.silent = epoch, limits, True
        self._groups.serves(group)
        returned = [record for record in self._queue.records() if record.timings.submitted_at is not None]
        group.awaited = {record.arrival for record in (*group.stalled.values(), *returned)}
        resumed = len(group.awaited)
        group.open(
            stub,
            on_open=lambda: self._stream_opened(group),
            on_alive=lambda flows: self._events.stream_alive(group_id, epoch, flows=flows),
            on_step=lambda response: self._step(group, response),
            on_broken=lambda reason: self._stream_broken(group, reason),
        )
        _log.info("group_ready", group=group_id, epoch=epoch, resumed=resumed, waiting=len(self._queue))
        return resumed

    def group_lost(self, group_id: str, epoch: int, reason: str, cause: Cause | None = None) -> None:
        """The group does not serve any more. Its streams stall until it does, or until they move. `cause` tells
        whether a request may be what broke it."""
        group = self._groups.find(group_id)
        if group is None or epoch < group.epoch or group.lost_at is not None:
            return
        group.close()
        self._wait(group.stall())
        there, group.cut_off = [record for record in group.cut_off if record.ending is None], ()
        for given_up in after_break(there, cause, reason):
            self._finish(given_up.record, given_up.ending)
        # Held apart from now on, perhaps.
        self._wait(record for record in there if record.place is Place.WAITING)
        group.epoch = epoch
        self._groups.lost(group, self._clock())
        _log.warning("group_lost", group=group_id, epoch=epoch, stalled=len(group.stalled), reason=reason)
        self._pump()
        self._on_changed()

    # --- what the front door calls

    @property
    def groups(self) -> ServingGroups:
        """All groups, to be looked at."""
        return self._groups

    def forecast(self, owner: str, priority: int) -> Forecast:
        """What a new request would have before it."""
        groups = self._groups
        ahead = tokens_ahead(self._queue.records(), owner, priority, groups.rates.output_tokens)
        return Forecast(ahead, capacity=groups.capacity, pace=groups.rates.pace(self._clock()))

    def counts(self) -> tuple[int, int]:
        """Requests that run, and that wait for a group or for a place in it."""
        return self._groups.running, self._groups.stalled + len(self._queue)

    def enqueue(self, record: RequestRecord) -> None:
        """A request that was admitted or revived: it goes to a group as soon as one has room."""
        self._wait([record])
        self._pump()
        if self._groups.none_since is not None:
            self._on_changed()  # while it was read the grace may have run out: it must not wait for ever

    def end(self, record: RequestRecord, ending: Ending) -> None:
        """Somebody outside ends it: it leaves its group at the next step."""
        self._finish(record, ending)
        self._pump()

    def extend(self, record: RequestRecord, token_ids: Sequence[int]) -> None:
        """The caller has more tokens of a living request than are recorded: theirs count; it goes on
        there."""
        group = self._groups.find(record.group_id)
        ending = record_from_caller(record, token_ids)
        if ending is not None:
            self._finish(record, ending, flush=True)
            self._pump()
            return
        self._queue.discard(record)
        if group is not None:
            group.remove(record)
            self._submit(group, record)
        else:
            self.enqueue(record)

    def tick(self, now: float) -> float | None:
        """What only time decides. Returns when to call again at the latest; None: nothing waits for time."""
        due = overdue(now, self._groups, self._config, no_group_since=self._groups.none_since)
        if due.give_up:
            self._give_up(now)
        for group in due.moving:
            self._move(group)
        return due.next_at

    def close(self) -> None:
        """Closes all streams. Requests stay as they are."""
        for group in self._groups:
            group.close()

    # --- streams

    def _stream_opened(self, group: ServingGroup) -> None:
        stalled = group.take_stalled()
        self._wait(record for record in stalled if record.suspicion.is_held)
        others = replay_order(record for record in stalled if not record.suspicion.is_held)
        if self._queue.must_isolate:
            self._wait(others)
        else:
            for record in others:
                self._submit(group, record)
        self._pump()
        self._on_changed()  # another group's streams may move here

    def _stream_broken(self, group: ServingGroup, reason: str) -> None:
        self._wait(group.stall())
        _log.warning("execute_stream_broken", group=group.group_id, epoch=group.epoch, reason=reason)
        self._events.stream_broken(group.group_id, group.epoch, reason)
        self._pump()

    def _move(self, group: ServingGroup) -> None:
        moving = group.take_stalled()
        _log.info("streams_moved", group=group.group_id, epoch=group.epoch, moved=len(moving))
        self._wait(moving)
        self._pump()

    def _give_up(self, now: float) -> None:
        reason = self._groups.refusal(now) or "no group serves"
        stalled = [record for group in self._groups for record in group.stalled.values()]
        for record in [*self._queue.records(), *stalled]:
            self._finish(record, Ending("unavailable", error=unavailable(reason), revivable=True))

    # --- submitting

    def _wait(self, records: Iterable[RequestRecord]) -> None:
        """They are in no group, and wait for any."""
        for record in records:
            record.place = Place.WAITING
            self._queue.push(record)

    def _pump(self) -> None:
        """Submits what waits, as long as a group has room."""
        for group in self._groups.least_loaded_first():
            # One group at a time: the others' streams have somewhere to go.
            alone = not any(other.isolating for other in self._groups if other is not group)
            held = self._queue.pop_held(group.running.values(), may_isolate=alone)
            if held is None:
                continue
            if held.suspicion.needs_isolation:
                self._wait(group.take_running())  # they go on behind it
            self._submit(group, held)
        while len(self._queue):
            group_id = choose_group(group.load for group in self._groups if group.ready)
            record = None if group_id is None else self._queue.pop()
            if group_id is None or record is None:
                return
            self._submit(self._groups.of(group_id), record)

    def _submit(self, group: ServingGroup, record: RequestRecord) -> None:
        # A new id every time: what an earlier stream says about the request can't be taken for the new one's.
        self._last_sequence_id += 1
        group.submit(record, self._last_sequence_id)
        if record.place is Place.RUNNING and record.timings.submitted_at is None:
            record.timings.submitted_at = now = self._clock()
            self._metrics.request_queued(record.timings.queue_s(now))
            self._queue.served(record.spec.owner, len(record.spec.prompt))

    # --- steps

    def _step(self, group: ServingGroup, response: ExecuteResponse) -> None:
        if response.epoch != group.epoch:
            _log.warning("step_of_old_epoch", group=group.group_id, epoch=response.epoch, current=group.epoch)
            return
        now = self._clock()
        result = record_step(response.outputs, group.running, now)
        failpoint("request.recorded")
        if result.generated and group.silent:
            group.silent = False
            self._events.first_token_after_ready(group.group_id, group.epoch, now)
        tell_step(self._metrics, group.group_id, response, result)
        self._groups.rates.stepped(now, result.gaps_s)
        for owner, tokens in result.served.items():
            self._queue.served(owner, tokens)
        for ended in result.ended:
            self._finish(ended.record, ended.ending, at_leader=ended.at_leader, flush=ended.flush)
        for broken in result.broken:
            self._submit_again(group, broken)
        if result.ended or result.cleared or result.broken:
            self._pump()

    def _submit_again(self, group: ServingGroup, broken: Broken) -> None:
        """From where the record ends, a few times; then it is given up."""
        record = broken.record
        ending = broken_off(record)
        _log.error(
            "sequence_broken",
            group=group.group_id,
            epoch=group.epoch,
            request_id=record.spec.request_id,
            reason=broken.reason,
            times=record.violations,
        )
        if ending is not None:
            self._finish(record, ending)
            return
        group.remove(record)
        self._submit(group, record)

    def _finish(
        self, record: RequestRecord, ending: Ending, *, at_leader: bool = False, flush: bool = False
    ) -> None:
        self._queue.discard(record)
        group = self._groups.find(record.group_id)
        if group is not None:
            group.remove(record, at_leader=at_leader)
        record.end(ending, self._clock(), flush=flush)
        if ending.error is None:
            self._groups.rates.ended(len(record.output))
        for other in self._groups:
            if other.was_last_awaited(record):
                self._events.resumed_gone(other.group_id, other.epoch)
        if ending.outcome == "error":
            _log.error("request_failed", request_id=record.spec.request_id, reason=str(ending.error))
        self._on_ended(record)

"""What the control plane asks of workers: an action becomes a call over the network, its answer becomes an event."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ryzanstein_coordinator import actions, events

from .network import Connection
from .worker import Answer, Reply

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .worker import Worker

#: Ask a worker; it answers when it has done it.
Ask = Callable[["Worker", Answer], None]
LOAD_TIMEOUT_S = 1800.0


class WorkerCalls:
    """As `calls.WorkerCalls` over `workers.Workers`: a call ends with its answer, its deadline or its channel."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._world = coordinator.world

    def load(self, action: actions.LoadShard) -> None:
        identity = action.worker_id, action.incarnation, action.key

        def done(reply: Reply) -> None:
            if reply.ok:
                event: events.Event = events.ShardLoaded(*identity, True, True, 1000)
            else:
                event = events.ShardRefused(*identity, False, reply.reason, reply.own_fault)
            self._coordinator.happened(event)

        self._call(action.incarnation, lambda w, answer: w.load(action, answer), done, LOAD_TIMEOUT_S)

    def abort(self, action: actions.AbortWorker) -> None:
        identity = action.worker_id, action.incarnation, action.epoch

        def done(reply: Reply) -> None:
            self._coordinator.happened(
                events.Fenced(*identity) if reply.ok else events.FenceFailed(*identity, reply.reason)
            )

        self._call(
            action.incarnation,
            lambda w, answer: w.abort(action, answer),
            done,
            self._coordinator.config.fence_timeout_s,
        )

    def join(self, action: actions.JoinGroup) -> None:
        nonce = self._world.rendezvous.open(action.group_id, action.epoch)
        for member in action.members:
            self._join(action, member.rank, member.worker_id, member.incarnation, nonce)

    def _join(
        self, action: actions.JoinGroup, rank: int, worker_id: str, incarnation: str, nonce: int
    ) -> None:
        identity = action.group_id, action.epoch, worker_id

        def done(reply: Reply) -> None:
            self._coordinator.happened(
                events.Joined(*identity, action.backend)
                if reply.ok
                else events.JoinFailed(*identity, reply.own_fault, reply.reason)
            )

        self._call(
            incarnation,
            lambda w, answer: w.join(action, rank, nonce, answer),
            done,
            self._coordinator.config.join_timeout_s + 1.0,
        )

    def drain(self, action: actions.DrainProcess) -> None:
        failed = events.DrainFailed(action.worker_id, action.incarnation)
        self._call(
            action.incarnation,
            lambda w, _answer: w.drain(),
            lambda reply: None if reply.ok else self._coordinator.happened(failed),
            2.0,
        )

    def drop(self, action: actions.DropWorker) -> None:
        """Closes the channel: its calls end as cancelled."""
        worker = self._coordinator.processes.get(action.incarnation)
        if worker is None:
            return
        channel = self._coordinator.channels.pop(worker, None)
        # If it lives, it learns of it by its next heartbeat.
        beat_s = self._coordinator.config.heartbeat_interval_s
        self._world.timeline.after(beat_s, lambda: worker.take(worker.tell))
        for connection in list(channel.streams if channel is not None else ()):
            told = connection.on_end_near
            connection.close(self._coordinator)
            if told is not None:
                self._world.timeline.after(0.0001, lambda told=told: self._coordinator.take(told))  # type: ignore[misc]

    def _call(self, incarnation: str, ask: Ask, done: Callable[[Reply], None], timeout_s: float) -> None:
        coordinator, world = self._coordinator, self._world
        worker = coordinator.processes.get(incarnation)
        channel = None if worker is None else coordinator.channels.get(worker)
        if worker is None or channel is None:
            return  # its process is gone: that is an event of its own
        pending = [True]
        connection: Connection | None = None

        def end(reply: Reply) -> None:
            if pending and coordinator.alive:
                pending.clear()
                if connection is not None:
                    channel.streams.pop(connection, None)
                    connection.close(coordinator)
                done(reply)

        def later(delay_s: float, reply: Reply) -> None:
            world.timeline.after(delay_s, lambda: coordinator.take(lambda: end(reply)))

        if not worker.alive:
            later(0.001, Reply(False, "UNAVAILABLE: connection refused"))
            return
        connection = world.connect(
            coordinator,
            worker,
            on_end_near=lambda: end(Reply(False, "UNAVAILABLE: the connection broke")),
            lanes=channel.lanes,
        )
        channel.streams[connection] = None
        over = connection

        def answer(reply: Reply) -> None:
            over.to_near(lambda: end(reply))

        connection.to_far(lambda: ask(worker, answer))
        if timeout_s < LOAD_TIMEOUT_S:
            later(timeout_s, Reply(False, "DEADLINE_EXCEEDED"))

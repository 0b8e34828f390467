"""One life of the coordinator: its control plane and its request path are real, what they ask for goes over the
simulated network and disk."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ryzanstein.wire import StatusError
from ryzanstein_coordinator import actions, events
from ryzanstein_coordinator.actions import Action
from ryzanstein_coordinator.calls import limits_message
from ryzanstein_coordinator.events import Event
from ryzanstein_coordinator.front_door import FrontDoor
from ryzanstein_coordinator.group_record import Phase
from ryzanstein_coordinator.intake import Intake
from ryzanstein_coordinator.prompts import ModelFacts
from ryzanstein_coordinator.registration import examine
from ryzanstein_coordinator.router import RouterConfig
from ryzanstein_coordinator.service import InferenceServicer
from ryzanstein_coordinator.worker_record import Telemetry

from .calls import WorkerCalls
from .disk import RequestRows, Writer
from .execute_call import Stub
from .model import END_IDS, VOCABULARY
from .network import Connection, Endpoint, Lane
from .setting import tokenizer
from .ticks import Ticks
from .timeline import SimulatedLoop

if TYPE_CHECKING:
    from .worker import Worker
    from .world import World


class Channel:
    """To one worker process: all streams over it keep one order, and end with it."""

    def __init__(self) -> None:
        self.lanes = Lane(), Lane()
        self.streams: dict[Connection, None] = {}


class Coordinator(Endpoint):
    """From its start to its death; the next one finds what the disk kept."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(f"coordinator#{number}")
        self.world = world
        self.config = world.config
        # It has only what tasks ask a loop for.
        self.loop = SimulatedLoop(world.timeline, world.checks.fail)  # type: ignore[abstract]
        self.control = world.setting.control
        self.writer = Writer(world.disk)
        self.rows = RequestRows(world.disk, self.writer, self.loop)
        previous = {group: ids for group, ids in world.disk.members.items() if ids}
        self.state = self.control.initial(
            world.now_s, committed_epoch=world.disk.highest_epoch, previous=previous
        )
        self.router = world.make_router(
            RouterConfig(
                no_group_grace_s=self.config.replacement_wait_s + world.setting.grace_s,
                default_max_num_seqs=self.config.max_num_seqs,
            ),
            self,
        )
        self.intake = Intake(self._facts, tokenizer())
        self.front_door = FrontDoor(
            intake=self.intake, router=self.router, log=self.rows, clock=lambda: world.timeline.now_s
        )
        self.servicer = InferenceServicer(self.front_door, self.intake)
        self.calls = WorkerCalls(self)
        #: Worker process → the streams and calls over the channel to it.
        self.channels: dict[Worker, Channel] = {}
        #: Incarnation → the process, as it registered.
        self.processes: dict[str, Worker] = {}
        self._streams: dict[Connection, tuple[Worker, int]] = {}
        self._stream_number = 0
        self._inbox: deque[Event] = deque()
        self._applying = False
        #: It saw nothing before.
        self.awake_since_s = world.now_s
        self.ticks = Ticks(self)

    def begin(self) -> None:
        """Reads what the former life left, and begins to serve."""
        self.loop.begin()
        self.front_door.restore(self.rows.restore())
        self.loop.create_task(self.front_door.run(), name="front-door")
        self.loop.run_ready()
        self.happened(events.Tick())

    def die(self) -> None:
        """kill -9."""
        self.alive = False
        self.writer.alive = False
        self.loop.end()
        for connection in list(self.connections):
            connection.die(self)
        self.intake.close()

    def stop(self) -> None:
        self.ticks.count_skipped()
        self.stopped = self.loop.stopped = True

    def resume(self) -> None:
        """What waited in its sockets is read after the timers that are over, as asyncio does."""
        self.stopped, self.awake_since_s = False, self.world.now_s
        self.ticks.resumed()
        self.release_waiting()
        self.loop.resume()

    # --- the control plane

    def happened(self, event: Event) -> None:
        """Applies the event, and those that come of carrying out what was decided."""
        self._inbox.append(event)
        if self._applying or not self.runs:
            return
        self._applying = True
        self.ticks.count_skipped()
        revision = self.state.revision
        try:
            while self._inbox:
                before, now_s = self.state, self.world.timeline.now_s
                decision = self.control.step(now_s, before, self._inbox.popleft())
                self.state = decision.state
                if decision.state.revision != before.revision:
                    self.world.checks.state_changed(self, before, decision.state)
                for action in decision.actions:
                    self._carry_out(action)
        finally:
            self._applying = False
        if self.state.revision != revision or isinstance(event, events.Tick):
            self.ticks.plan()
        self.loop.run_ready()
        self.world.checks.readiness(self)

    def _carry_out(self, action: Action) -> None:
        self.world.note("  → %s", action)
        match action:
            case actions.CommitEpoch():
                self.writer.commit(action.epoch, lambda durable: self._committed(action.epoch, durable))
            case actions.RememberMembers():
                self.writer.remember(action.group_id, action.members)
            case actions.LoadShard():
                self.calls.load(action)
            case actions.AbortWorker():
                self.calls.abort(action)
            case actions.JoinGroup():
                self.calls.join(action)
            case actions.LeaveEpoch():
                self.world.rendezvous.close(action.group_id)
            case actions.AnnounceReady():
                self._announce_ready(action)
            case actions.AnnounceLost():
                self.router.group_lost(action.group_id, action.epoch, action.reason, action.cause)
            case actions.DrainProcess():
                self.calls.drain(action)
            case actions.DropWorker():
                self.calls.drop(action)

    def _committed(self, epoch: int, durable: int | None) -> None:
        done: Event = (
            events.CommitFailed(epoch, "no space") if durable is None else events.EpochCommitted(durable)
        )
        self.take(lambda: self.happened(done))

    def _announce_ready(self, action: actions.AnnounceReady) -> None:
        worker = self.processes.get(action.leader.incarnation)
        if worker is None or worker not in self.channels:
            return
        self.world.checks.announced(self, action)
        stub: Any = Stub(self, worker)
        resumed = self.router.group_ready(action.group_id, action.epoch, stub, limits_message(action.limits))
        self.happened(events.RequestsResumed(action.group_id, action.epoch, resumed))

    # --- what the router notices

    def stream_broken(self, group_id: str, epoch: int, reason: str) -> None:
        self.world.note("execute stream of %s broke: %s", group_id, reason)
        self.ticks.catch_up_all()
        self.happened(events.ExecuteBroken(group_id, epoch, reason))

    def stream_alive(self, group_id: str, epoch: int, *, flows: bool = False) -> None:
        self.happened(events.ExecuteAlive(group_id, epoch, flows))

    def resumed_gone(self, group_id: str, epoch: int) -> None:
        self.happened(events.ResumedGone(group_id, epoch))

    def first_token_after_ready(self, group_id: str, epoch: int, now_s: float) -> None:
        self.happened(events.FirstToken(group_id, epoch, now_s))

    # --- ClusterService

    def register(self, worker: Worker, connection: Connection) -> None:
        """As `MultiGPUOrchestrator.register`; the worker's heartbeats follow on the same connection."""
        try:
            record = examine(self.world.timeline.now_s, self.state, worker.membership.request)
        except StatusError as error:
            reason = error.message
            connection.to_near(lambda: worker.membership.refused(reason))
            return
        self.world.note("%s registers", worker.name)
        # Calls begin in the loop's next round: by then the channel is open.
        self.processes[worker.incarnation] = worker
        self.channels.setdefault(worker, Channel())
        self.happened(events.Registered(record, worker.membership.request.highest_epoch))
        epoch = self.state.announced_epoch
        connection.to_near(lambda: worker.membership.accepted(epoch))

    def heartbeat(self, worker: Worker, connection: Connection, report: Telemetry) -> None:
        """As `ClusterServicer.Heartbeat`: the first message opens the stream."""
        record = self.state.workers.get(worker.worker_id)
        if record is not None and worker.incarnation in record.replaced:
            connection.to_near(lambda: worker.membership.refused("another process has this id"))
            return
        if record is None or record.incarnation != worker.incarnation or not record.alive:
            self._stream_ended(connection)
            connection.close(self)
            return
        if connection not in self._streams:
            self._stream_number += 1
            self._streams[connection] = worker, self._stream_number
            connection.on_end_far = lambda: self._stream_ended(connection)
            self.happened(events.StreamOpened(worker.worker_id, worker.incarnation, self._stream_number))
        if report.fault is not None:
            self.ticks.catch_up_all()  # all reports are looked at
        self.beat(worker, report)
        epoch = self.epoch_for(worker)
        connection.to_near(lambda: worker.membership.beat_answered(epoch))

    def beat(self, worker: Worker, report: Telemetry) -> None:
        self.happened(events.Beat(worker.worker_id, worker.incarnation, report))

    def epoch_for(self, worker: Worker) -> int:
        """What a heartbeat of the worker is answered with."""
        record = self.state.workers.get(worker.worker_id)
        group = None if record is None else self.state.group(record.group or "")
        return self.state.announced_epoch if group is None else group.epoch

    def _stream_ended(self, connection: Connection) -> None:
        entry = self._streams.pop(connection, None)
        if entry is not None:
            worker, number = entry
            self.world.note("the heartbeats of %s end", worker.name)
            self.happened(events.StreamEnded(worker.worker_id, worker.incarnation, number))

    # --- facts

    def _facts(self) -> ModelFacts:
        planned = [group.limits.max_model_len for group in self.state.groups if group.limits is not None]
        return ModelFacts(
            name="model",
            max_model_len=min(planned, default=self.config.max_model_len or 0),
            vocab_size=VOCABULARY,
            eos_token_ids=tuple(sorted(END_IDS)),
        )

    def readiness(self) -> tuple[bool, str]:
        return self.control.monitor.readiness(self.world.timeline.now_s, self.state)

    @property
    def all_serve(self) -> bool:
        return all(group.phase is Phase.SERVING for group in self.state.groups)

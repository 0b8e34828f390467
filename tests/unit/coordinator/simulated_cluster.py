"""A cluster without clocks, sockets or processes: the real control plane, and workers, network and disk that are a
queue of things to come. A seed decides every delay, so every run can be repeated.

What must hold at any moment is checked at every event, in `_check` and where actions are taken.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ryzanstein_coordinator import actions, events
from ryzanstein_coordinator.actions import Action
from ryzanstein_coordinator.config import OrchestratorConfig
from ryzanstein_coordinator.events import Event
from ryzanstein_coordinator.group_record import Phase
from ryzanstein_coordinator.worker_record import FaultReport, ShardKey, Telemetry, WorkerRecord

from .cluster_builders import control_plane, worker


@dataclass
class Process:
    """One worker process. `stopped` is SIGSTOP: it does nothing, and what it is sent waits."""

    worker_id: str
    number: int
    alive: bool = True
    stopped: bool = False
    registered: bool = False
    stream: int = 0
    seen_epoch: int = 0
    #: (group, epoch, rank) that it is in, joined or joining.
    inside: tuple[str, int, int] | None = None
    serving: bool = False
    shards: set[ShardKey] = field(default_factory=set)
    busy_until_s: float = 0.0
    fault: FaultReport | None = None
    #: Heartbeats go on, steps don't.
    stuck: bool = False
    stuck_since_s: float = 0.0
    waiting: list[Callable[[], None]] = field(default_factory=list)

    @property
    def incarnation(self) -> str:
        return f"{self.worker_id}-{self.number}"

    @property
    def runs(self) -> bool:
        return self.alive and not self.stopped


class SimulatedCluster:
    """Drive it with `start`, `kill`, `stop`, `resume`, `run_for`; look at `state` and `history`."""

    def __init__(
        self, config: OrchestratorConfig, seed: int = 0, *, refuses: frozenset[str] = frozenset()
    ) -> None:
        self.config = config
        self.control = control_plane(config)
        self.now_s = 100.0
        self.state = self.control.initial(self.now_s, committed_epoch=0, previous={})
        self.processes: dict[str, Process] = {}
        self.ready: dict[str, int] = {}
        #: By group: tokens that its streams may have.
        self.promised: dict[str, int] = {}
        self.history: list[tuple[float, Action]] = []
        self.actions = 0
        self.disk_works = True
        #: Ids of workers whose JoinGroup fails; how often LoadShard still fails; who has no files.
        self.cannot_join: set[str] = set()
        self.failing_loads: dict[str, int] = {}
        self.without_files: set[str] = set()
        #: To whom LoadShard and Drain do not get through.
        self.unreached: set[str] = set()
        #: Who takes no Execute stream.
        self.deaf: set[str] = set()
        self._refuses = refuses
        self._random = random.Random(seed)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._streams = itertools.count(1)
        self._numbers = itertools.count(1)
        self._joining: dict[tuple[str, int], dict[str, Callable[[str], None]]] = {}
        self._highest: dict[str, int] = {}
        self._tick()

    # --- what a test does

    def start(self, *worker_ids: str) -> None:
        """Starts a process for each id; an older one of the same id must be dead."""
        for worker_id in worker_ids:
            process = Process(worker_id, next(self._numbers))
            self.processes[worker_id] = process
            self._later(0.001, 0.05, lambda process=process: self._register(process))  # type: ignore[misc]

    def kill(self, worker_id: str, *, seen_after_s: float | None = None) -> None:
        """kill -9. The sockets close a moment later."""
        process = self.processes[worker_id]
        process.alive = False
        stream, incarnation = process.stream, process.incarnation
        ended = events.StreamEnded(worker_id, incarnation, stream, "killed")
        delay_s = self._random.uniform(0.002, 0.3) if seen_after_s is None else seen_after_s
        self._at(self.now_s + delay_s, lambda: self._send(ended))
        self._peers_fail(process)

    def stop(self, worker_id: str) -> None:
        """SIGSTOP."""
        self.processes[worker_id].stopped = True

    def resume(self, worker_id: str) -> None:
        """SIGCONT: what was sent meanwhile is taken in now."""
        process = self.processes[worker_id]
        process.stopped = False
        waiting, process.waiting = process.waiting, []
        for run in waiting:
            run()

    def stick(self, worker_id: str) -> None:
        """The engine stands still in a step; the control thread beats on."""
        process = self.processes[worker_id]
        process.stuck, process.stuck_since_s = True, self.now_s

    def pause(self, seconds: float) -> None:
        """The coordinator itself stands still: what was sent to it waits, and its clock is read before that."""
        self.now_s += seconds
        self._send(events.Tick())

    def run_for(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self._queue and self._queue[0][0] <= until_s:
            self._next()
        self.now_s = max(self.now_s, until_s)

    def run_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Whether the condition came true in time."""
        until_s = self.now_s + within_s
        while not condition() and self._queue and self._queue[0][0] <= until_s:
            self._next()
        return condition()

    def send(self, event: Event) -> None:
        """An event of the test's own."""
        self._send(event)

    @property
    def all_serve(self) -> bool:
        return all(group.phase is Phase.SERVING for group in self.state.groups)

    def members(self, group_id: str = "g0") -> list[str]:
        group = self.state.group(group_id)
        assert group is not None
        return [member.worker_id for member in group.members]

    def record(self, worker_id: str) -> WorkerRecord:
        return self.state.workers[worker_id]

    # --- the coordinator's side

    def _next(self) -> None:
        moment_s, _, run = heapq.heappop(self._queue)
        self.now_s = max(self.now_s, moment_s)
        run()

    def _send(self, event: Event) -> None:
        decision = self.control.step(self.now_s, self.state, event)
        self.state = decision.state
        self._check()
        for action in decision.actions:
            self.actions += 1
            self.history.append((self.now_s, action))
            self._carry_out(action)

    def _check(self) -> None:
        state = self.state
        placed: set[str] = set()
        for group in state.groups:
            assert group.epoch >= self._highest.get(group.group_id, 0), "an epoch went back"
            self._highest[group.group_id] = group.epoch
            assert group.epoch <= state.committed_epoch, "an epoch was announced before it was durable"
            ids = [member.worker_id for member in group.members]
            assert len(set(ids)) == len(ids), "one worker has two ranks"
            assert not placed & set(ids), "one worker is in two groups"
            placed |= set(ids)
            if group.members:
                assert [member.rank for member in group.members] == list(range(group.size))
            for member in group.members:
                record = state.workers[member.worker_id]
                assert (record.rank, record.group) == (member.rank, group.group_id) or not record.usable
        epochs = [group.epoch for group in state.groups if group.epoch]
        assert len(set(epochs)) == len(epochs), "two groups have the same epoch"

    def _carry_out(self, action: Action) -> None:
        match action:
            case actions.CommitEpoch():
                self._commit(action.epoch)
            case actions.LoadShard():
                self._announced(action.epoch)
                assert not self.record(action.worker_id).fence_epoch, "a worker loads before it has left"
                self._call(action.worker_id, action.incarnation, lambda p: self._load(p, action))
            case actions.AbortWorker():
                if action.epoch > self.processes[action.worker_id].seen_epoch:  # else it knows it already
                    self._announced(action.epoch)
                self._call(action.worker_id, action.incarnation, lambda p: self._abort(p, action))
                failed = events.FenceFailed(action.worker_id, action.incarnation, action.epoch, "deadline")
                self._at(self.now_s + self.config.fence_timeout_s, lambda: self._unless_fenced(failed))
            case actions.JoinGroup():
                self._announced(action.epoch)
                for member in action.members:
                    self._call(
                        member.worker_id,
                        member.incarnation,
                        lambda p, rank=member.rank: self._join(p, action, rank),  # type: ignore[misc]
                    )
            case actions.AnnounceReady():
                assert action.epoch > self.ready.get(action.group_id, 0), (
                    "a group is ready twice in one epoch"
                )
                self.ready[action.group_id] = action.epoch
                promised = self.promised.setdefault(action.group_id, action.limits.max_model_len)
                assert action.limits.max_model_len >= promised, "streams that run do not fit any more"
                if action.leader.worker_id not in self.deaf:
                    alive = events.ExecuteAlive(action.group_id, action.epoch)
                    self._later(0.001, 0.01, lambda: self._send(alive))
            case actions.DrainProcess():
                self._call(action.worker_id, action.incarnation, self._leave)
            case (
                actions.AnnounceLost()
                | actions.LeaveEpoch()
                | actions.RememberMembers()
                | actions.DropWorker()
            ):
                pass

    def _announced(self, epoch: int) -> None:
        assert epoch <= self.state.committed_epoch, "a worker was told an epoch that is not durable"

    def _commit(self, epoch: int) -> None:
        done: Event = events.EpochCommitted(epoch)
        if not self.disk_works:
            done = events.CommitFailed(epoch, "the disk is full")
        self._later(0.001, 0.02, lambda: self._send(done))

    def _tick(self) -> None:
        self._send(events.Tick())
        self._at(self.now_s + self.config.heartbeat_interval_s / 4, self._tick)

    def _unless_fenced(self, failed: events.FenceFailed) -> None:
        record = self.state.workers.get(failed.worker_id)
        if record is not None and record.fencing and record.incarnation == failed.incarnation:
            self._send(failed)

    # --- the workers' side

    def _call(self, worker_id: str, incarnation: str, run: Callable[[Process], None]) -> None:
        def arrive() -> None:
            process = self.processes[worker_id]
            if process.incarnation != incarnation or not process.alive:
                return
            if process.stopped:
                process.waiting.append(arrive)
            else:
                run(process)

        self._later(0.0001, 0.003, arrive)

    def _reply(self, process: Process, event: Event) -> None:
        def arrive() -> None:
            if process.alive:
                self._send(event)

        self._later(0.0001, 0.003, arrive)

    def _register(self, process: Process) -> None:
        if not process.runs:
            if process.stopped:
                process.waiting.append(lambda: self._register(process))
            return
        known = self.state.workers.get(process.worker_id)
        fresh = worker(
            process.worker_id,
            incarnation=process.incarnation,
            registered_at_s=self.now_s,
            stream=0,
            heard=False,
        )
        if known is not None and known.incarnation == process.incarnation:
            stream = 0 if known.lost_reason else known.stream
            heard = known.heard and not known.lost_reason
            fresh = replace(known, registered_at_s=self.now_s, lost_reason="", stream=stream, heard=heard)
        elif known is not None:
            fresh = replace(fresh, replaced=(*known.replaced, known.incarnation))
        fresh = replace(fresh, seen_epoch=max(fresh.seen_epoch, process.seen_epoch))
        self._send(events.Registered(fresh, process.seen_epoch))
        process.stream = next(self._streams)
        self._send(events.StreamOpened(process.worker_id, process.incarnation, process.stream))
        process.registered = True
        self._beat(process, process.stream)

    def _beat(self, process: Process, stream: int) -> None:
        if not process.alive or process.stream != stream:
            return
        if process.stopped:
            process.waiting.append(lambda: self._beat(process, stream))
            return
        record = self.state.workers.get(process.worker_id)
        if record is None or record.incarnation != process.incarnation or record.lost_reason:
            self._later(0.01, 0.1, lambda: self._register(process))  # its stream was ended: it begins anew
            return
        self._report(process)
        self._at(self.now_s + self.config.heartbeat_interval_s, lambda: self._beat(process, stream))

    def _report(self, process: Process) -> None:
        if not process.runs or not process.registered:
            return
        report = Telemetry(
            heard_at_s=self.now_s,
            epoch=process.inside[1] if process.inside else 0,
            fault=process.fault,
            progress_age_s=self.now_s - process.stuck_since_s if process.stuck else 0.0,
            collective="all_reduce",
            collective_sequence=0 if process.stuck else 1,
        )
        self._send(events.Beat(process.worker_id, process.incarnation, report))

    def _load(self, process: Process, action: actions.LoadShard) -> None:
        identity = (process.worker_id, process.incarnation, action.key)
        if action.epoch < process.seen_epoch or process.inside is not None:
            self._reply(process, events.ShardRefused(*identity, False, "FAILED_PRECONDITION"))
            return
        if process.worker_id in self.unreached:
            self._reply(process, events.ShardRefused(*identity, False, "UNAVAILABLE", own_fault=False))
            return
        process.seen_epoch = action.epoch
        if process.worker_id in self._refuses:
            self._reply(process, events.ShardRefused(*identity, True, "another checkpoint"))
            return

        if self.failing_loads.get(process.worker_id, 0) > 0:
            self.failing_loads[process.worker_id] -= 1
            self._reply(process, events.ShardRefused(*identity, False, "out of memory"))
            return
        has_files, held = process.worker_id not in self.without_files, action.key in process.shards

        def loaded() -> None:
            if process.stopped:
                process.waiting.append(loaded)
            elif process.alive:
                process.shards = {*process.shards, action.key} if action.beside or held else {action.key}
                self._reply(process, events.ShardLoaded(*identity, has_files, has_files, 1000))

        # The engine does one thing after the other.
        process.busy_until_s = max(process.busy_until_s, self.now_s) + self._random.uniform(
            0.0005, 0.001 if held else 0.5
        )
        self._at(process.busy_until_s, loaded)

    def _join(self, process: Process, action: actions.JoinGroup, rank: int) -> None:
        identity = (action.group_id, action.epoch, process.worker_id)
        if action.epoch < process.seen_epoch:
            self._reply(process, events.JoinFailed(*identity, True, "FAILED_PRECONDITION: stale epoch"))
            return
        process.shards = {
            key for key in process.shards if (key.rank, key.size) == (rank, len(action.members))
        }
        assert process.shards, "a worker joins with another rank's shard"
        process.seen_epoch = action.epoch
        if process.worker_id in self.cannot_join:
            self._reply(process, events.JoinFailed(*identity, True, "INTERNAL: no shared memory"))
            return
        process.inside, process.fault = (action.group_id, action.epoch, rank), None

        def end(reason: str) -> None:
            if reason:
                process.inside = None
                self._reply(process, events.JoinFailed(*identity, False, reason))
            else:
                process.serving = True
                self._reply(process, events.Joined(*identity, "shared_memory"))

        attempt = self._joining.setdefault((action.group_id, action.epoch), {})
        attempt[process.worker_id] = end
        if len(attempt) == len(action.members):
            del self._joining[action.group_id, action.epoch]
            dead = [m for m in action.members if not self.processes[m.worker_id].alive]
            for finish in attempt.values():
                finish("UNAVAILABLE: a peer is gone" if dead else "")

    def _abort(self, process: Process, action: actions.AbortWorker) -> None:
        if action.epoch < process.seen_epoch:
            failed = (process.worker_id, process.incarnation, action.epoch, "FAILED_PRECONDITION")
            self._reply(process, events.FenceFailed(*failed))
            return
        process.seen_epoch = action.epoch
        self._get_out(process)
        self._reply(process, events.Fenced(process.worker_id, process.incarnation, action.epoch))
        self._report(process)

    def _get_out(self, process: Process) -> None:
        inside, process.inside = process.inside, None
        process.serving, process.stuck = False, False
        if inside is not None:
            attempt = self._joining.get(inside[:2], {})
            attempt.pop(process.worker_id, None)
            for finish in list(attempt.values()):
                finish("UNAVAILABLE: a peer has left")
            self._joining.pop(inside[:2], None)
            self._peers_fail(process, inside)

    def _peers_fail(self, process: Process, inside: tuple[str, int, int] | None = None) -> None:
        """The others of its group notice in their next collective."""
        inside = inside or process.inside
        if inside is None:
            return
        group_id, epoch, rank = inside

        def notice(peer: Process) -> None:
            if peer.runs and peer.serving and peer.inside and peer.inside[:2] == (group_id, epoch):
                peer.fault = FaultReport(
                    kind="collective", message="a peer left", epoch=epoch, peer_rank=rank
                )
                peer.inside, peer.serving = None, False
                self._report(peer)

        for peer in list(self.processes.values()):
            if peer is not process:
                self._later(0.01, 0.025, lambda peer=peer: notice(peer))  # type: ignore[misc]

    def _leave(self, process: Process) -> None:
        """Drain: the process ends."""
        if process.worker_id in self.unreached:
            self._reply(process, events.DrainFailed(process.worker_id, process.incarnation))
            return
        process.alive = False
        ended = events.StreamEnded(process.worker_id, process.incarnation, process.stream, "")
        self._later(0.001, 0.01, lambda: self._send(ended))

    def _later(self, least_s: float, most_s: float, run: Callable[[], None]) -> None:
        self._at(self.now_s + self._random.uniform(least_s, most_s), run)

    def _at(self, moment_s: float, run: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (moment_s, next(self._order), run))

"""One worker process: its membership in the cluster, its engine, and what may happen to both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_coordinator import actions
from ryzanstein_coordinator.worker_record import FaultReport, ShardKey, Telemetry

from .execute_call import ExecuteCall
from .group_run import GroupRun
from .membership import Membership
from .network import Endpoint

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .world import World

#: Tells what came of a call: its result, or why not.
Answer = Callable[["Reply"], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """Of a control call. `own_fault`: the worker refused it by itself."""

    ok: bool
    reason: str = ""
    own_fault: bool = False


class Worker(Endpoint):
    """As `membership`, `service` and `engine` of the shard worker behave, without weights."""

    def __init__(self, world: World, worker_id: str, number: int) -> None:
        super().__init__(f"{worker_id}#{number}")
        self.world = world
        self.worker_id, self.number = worker_id, number
        self.incarnation = f"{worker_id}-{number}"
        #: The highest epoch that a call named.
        self.named_epoch = 0
        #: What it holds: one shard, or as a spare more than one.
        self.shards: set[ShardKey] = set()
        self.fault: FaultReport | None = None
        #: The epoch that it is in or on its way into; 0: none.
        self.epoch = 0
        self.run: GroupRun | None = None
        self.outputs: ExecuteCall | None = None
        #: The engine stands still, heartbeats go on.
        self.stuck = False
        #: What comes on new Execute streams is lost; heartbeats and calls come through.
        self.deaf = False
        #: Seconds that each of its steps takes longer.
        self.slow_s = 0.0
        #: Its heartbeats are late by so much.
        self.late_s = 0.0
        self._engine_free_s = 0.0
        self._joining: Answer | None = None
        self._aborts: list[Answer] = []
        self.membership = Membership(world, self)

    @property
    def computes(self) -> bool:
        """Its engine takes part in steps."""
        return self.alive and not self.stopped and not self.stuck

    @property
    def busy(self) -> bool:
        return self.epoch != 0

    def reachable(self, coordinator: Coordinator) -> bool:
        """Whether a connection can be made now."""
        return self.alive and not self.cut and not coordinator.cut

    def tell(self) -> None:
        """A heartbeat now: something has changed."""
        self.membership.tell()

    def report(self, heard_at_s: float | None = None) -> Telemetry:
        """What a heartbeat says."""
        now_s = self.world.now_s
        run = self.run
        return Telemetry(
            heard_at_s=now_s if heard_at_s is None else heard_at_s,
            epoch=self.epoch,
            phase="serving" if run is not None else "waiting",
            step=0 if run is None else run.steps,
            progress_age_s=0.0 if run is None else run.progress_age_s(now_s),
            collective="all_reduce",
            # A rank that stands still has entered fewer collectives than those that wait for it.
            collective_sequence=0 if run is None else 100 * run.steps + (0 if self.stuck else 50),
            fault=self.fault,
        )

    # --- the service

    def _advance(self, epoch: int, answer: Answer) -> bool:
        if epoch < self.named_epoch:
            answer(Reply(False, f"FAILED_PRECONDITION: epoch {epoch} is older than {self.named_epoch}", True))
            return False
        self.world.checks.told(self, epoch)
        self.named_epoch = epoch
        return True

    def load(self, action: actions.LoadShard, answer: Answer) -> None:
        if not self._advance(action.epoch, answer):
            return
        if self.busy:
            answer(Reply(False, "FAILED_PRECONDITION: this worker is in a group", True))
            return
        held = action.key in self.shards
        takes_s = 0.0005 if held else 0.002 + self.world.load_s * self.world.random()

        def loaded() -> None:
            if not getattr(action, "beside", False):
                self.shards &= {action.key}
            self.shards.add(action.key)
            answer(Reply(True))

        self._engine(takes_s, loaded)

    def join(self, action: actions.JoinGroup, rank: int, nonce: int, answer: Answer) -> None:
        if not self._advance(action.epoch, answer):
            return
        if self.busy:
            answer(Reply(False, "FAILED_PRECONDITION: this worker is in a group", True))
            return
        self.epoch, self._joining = action.epoch, answer
        self._engine(0.001, lambda: self._enter(action, rank, nonce))

    def _enter(self, action: actions.JoinGroup, rank: int, nonce: int) -> None:
        if self._joining is None or self.epoch != action.epoch:
            return  # aborted before it began
        fitting = {shard for shard in self.shards if (shard.rank, shard.size) == (rank, len(action.members))}
        if not fitting:
            self.join_failed(f"FAILED_PRECONDITION: rank {rank} has no shard loaded here", own_fault=True)
            return
        self.shards = fitting
        self.fault = None
        self.world.rendezvous.meet(self, action, nonce)

    def join_failed(self, reason: str, *, own_fault: bool = False) -> None:
        answer, self._joining = self._joining, None
        self.epoch = 0
        self.world.rendezvous.left(self)
        if answer is not None:
            answer(Reply(False, reason, own_fault))
        self.tell()

    def joined(self, run: GroupRun) -> None:
        """The group stands."""
        answer, self._joining = self._joining, None
        self.run = run

        def say_so() -> None:
            if answer is not None:
                answer(Reply(True))
            self.tell()

        self.take(say_so)

    def abort(self, action: actions.AbortWorker, answer: Answer) -> None:
        if not self._advance(action.epoch, answer):
            return
        if self.stuck and self.busy:
            self._aborts.append(answer)  # answered when the engine is out
        else:
            self.leave(None)
            answer(Reply(True))

    def drain(self) -> None:
        """The process ends in order."""
        self.world.end_worker(self)

    # --- the engine

    def _engine(self, takes_s: float, run: Callable[[], None]) -> None:
        """Does one thing after the other."""
        self._engine_free_s = max(self._engine_free_s, self.world.now_s) + takes_s
        self.world.timeline.at(self._engine_free_s, lambda: self.take(run))

    def leave(self, fault: FaultReport | None) -> None:
        """Out of the group, or of the way into one; the shard stays."""
        if self._joining is not None:
            self.join_failed("UNAVAILABLE: aborted")
            return
        run, self.run = self.run, None
        changed = self.busy or fault is not None
        self.epoch, self.fault, self.stuck = 0, fault, False
        if run is not None:
            if self.outputs is not None:
                self.outputs.over()
            run.member_gone(self)
        if changed:
            self.tell()

    def step_failed(self, run: GroupRun, fault: FaultReport) -> None:
        """A peer did not answer."""
        if self.run is run and self.alive:
            if self.stuck:
                return  # it will see it when it goes on
            self.leave(fault)

    def publish(self, run: GroupRun, response: shard_worker_pb2.ExecuteResponse) -> None:
        """Takes what a step brought. Without a listener it is dropped."""
        if self.outputs is not None and self.outputs.run is run:
            self.outputs.publish(response)

    # --- what may happen to it

    def stick(self) -> None:
        self.stuck = True
        if self.run is not None:
            self.run.member_changed()

    def unstick(self) -> None:
        self.stuck = False
        aborts, self._aborts = self._aborts, []
        run = self.run
        if run is not None and (run.broken or aborts):
            self.leave(None)
        elif run is not None:
            run.member_changed()
        for answer in aborts:
            answer(Reply(True))

    def stop(self) -> None:
        self.stopped = True
        if self.run is not None:
            self.run.member_changed()

    def resume(self) -> None:
        self.stopped = False
        self.release_waiting()
        if self.run is not None:
            self.run.member_changed()
        self.tell()

    def die(self) -> None:
        """kill -9: its sockets close."""
        self.alive = False
        self.world.rendezvous.left(self)
        run, self.run = self.run, None
        if run is not None:
            run.member_gone(self)
        for connection in list(self.connections):
            connection.die(self)

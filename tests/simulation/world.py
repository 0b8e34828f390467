"""The world around the system: processes, supervisor, clients, and the faults that happen to them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import grpc

from ryzanstein.wire import StatusError
from ryzanstein_coordinator.router import Router, RouterConfig

from .checks import Checks
from .client import Client, expected_of
from .coordinator import Coordinator
from .disk import Disk
from .group_run import GroupRun
from .model import END_IDS
from .network import Connection, Endpoint, Lane
from .plan import Ask, Fault, Plan
from .rendezvous import Rendezvous
from .setting import MAX_MODEL_LEN, setting_of
from .timeline import Run, Timeline
from .watched_router import WatchedRouter
from .worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable


class World:
    """Everything of one schedule."""

    def __init__(self, plan: Plan, *, traced: bool = False, every_tick: bool = False) -> None:
        self.plan = plan
        self.setting = setting_of(plan.shape)
        self.config = self.setting.config
        self.timeline = Timeline()
        self.rng = random.Random(plan.seed ^ 0x5EED)
        self.random: Callable[[], float] = self.rng.random
        self.load_s = plan.load_s
        #: Tick and beat as often as a real one would: slow, and the same.
        self.every_tick = every_tick
        self._traced = traced
        self.trace: list[str] = []
        self.checks = Checks(self)
        self.disk = Disk(self.timeline, self.rng)
        self.rendezvous = Rendezvous(self)
        #: The newest process of each id.
        self.workers: dict[str, Worker] = {}
        #: Groups that stand, or whose ranks have not all found out yet.
        self.runs: list[GroupRun] = []
        self.clients: dict[str, Client] = {}
        #: Requests that break their group → tokens that each gets of one submission before it does.
        self.poison: dict[str, int] = {}
        self.inflicted: list[Fault] = []
        self.unfinished = 0
        self._numbers = 0
        self._lives = 0
        self.coordinator: Coordinator | None = None

    @property
    def now_s(self) -> float:
        return self.timeline.now_s

    def note(self, text: str, *arguments: object) -> None:
        """A line of the trace."""
        if self._traced:
            self.trace.append(f"{self.now_s - 100.0:8.4f}  " + (text % arguments if arguments else text))

    def connect(
        self,
        near: Endpoint,
        far: Endpoint,
        *,
        on_end_near: Run | None = None,
        on_end_far: Run | None = None,
        lanes: tuple[Lane, Lane] | None = None,
    ) -> Connection:
        return Connection(
            self.timeline,
            self.rng,
            near,
            far,
            on_end_near=on_end_near,
            on_end_far=on_end_far,
            lanes=lanes,
        )

    def make_router(self, config: RouterConfig, events: Coordinator) -> Router:
        return WatchedRouter(config, events=events, clock=lambda: self.timeline.now_s, checks=self.checks)

    # --- processes

    def begin(self) -> None:
        """The coordinator, all workers, and what is planned."""
        self.start_coordinator()
        for number in range(self.config.worker_count):
            worker_id = f"w{number}"
            if number < self.plan.late_workers:
                self.timeline.after(self.plan.late_by_s, lambda w=worker_id: self.start_worker(w))  # type: ignore[misc]
            else:
                self.start_worker(worker_id)
        for ask in self.plan.asks:
            self.unfinished += 1
            self.timeline.after(ask.at_s, lambda ask=ask: self.start_client(ask))  # type: ignore[misc]

    def start_coordinator(self) -> None:
        if self.coordinator is None:
            self._lives += 1
            self.note("coordinator %d starts", self._lives)
            self.coordinator = Coordinator(self, self._lives)
            self.coordinator.begin()

    def start_worker(self, worker_id: str) -> None:
        """A new process under this id, if there is none."""
        old = self.workers.get(worker_id)
        if old is None or not old.alive:
            self._numbers += 1
            worker = self.workers[worker_id] = Worker(self, worker_id, self._numbers)
            self.note("%s starts", worker.name)
            worker.membership.begin()

    def start_client(self, ask: Ask) -> None:
        client = Client(self, ask, expected_of(ask, MAX_MODEL_LEN, END_IDS))
        self.clients[ask.request_id] = client
        self.note("%s begins: %d + %d tokens", client.name, len(ask.prompt), len(client.expected.tokens))
        client.open()

    def end_worker(self, worker: Worker) -> None:
        """The process ends, whyever; its supervisor starts another one after a while."""
        if not worker.alive:
            return
        self.catch_up(worker)
        self.note("%s ends", worker.name)
        worker.die()
        self.checks.fault_begins(worker)
        self.timeline.after(self.plan.restart_s, lambda: self.start_worker(worker.worker_id))

    def end_coordinator(self) -> None:
        coordinator = self.coordinator
        if coordinator is None:
            return
        self.note("the coordinator dies")
        self.coordinator = None
        coordinator.die()
        self.rendezvous.close_all()
        self.timeline.after(self.plan.restart_s, self.start_coordinator)

    def catch_up(self, worker: Worker) -> None:
        """Before something changes: the heartbeats that have come until now."""
        if self.coordinator is not None and self.coordinator.runs:
            self.coordinator.ticks.catch_up(worker)

    def formed(self, run: GroupRun) -> None:
        self.runs = [other for other in self.runs if not other.broken] + [run]

    def cancel(self, request_id: str) -> None:
        """The Cancel call, as it arrives."""
        coordinator = self.coordinator
        if coordinator is None or not coordinator.alive:
            return
        try:
            coordinator.front_door.cancel(request_id)
        except StatusError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                self.checks.fail(f"Cancel of {request_id}: {error.message}")
        coordinator.loop.run_ready()

    def replan_ticks(self) -> None:
        """Something happened that time may make a fault of."""
        if self.coordinator is not None and self.coordinator.runs:
            self.coordinator.ticks.plan()

"""Everything that may happen to a world, by name, and how it is put right again."""

from __future__ import annotations

from collections.abc import Callable

from ryzanstein_coordinator import events

from .client import Client
from .plan import Fault
from .worker import Worker
from .world import World


class Faults:
    """Inflicts and heals."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kinds: dict[str, Callable[[Fault], None]] = {
            "kill": lambda f: world.end_worker(self._worker(f)),
            "kill_leader": lambda f: world.end_worker(self._leader(f)),
            "kill_two": self._kill_two,
            "stop": lambda f: self.stop(self._worker(f), self._stop_s(f)),
            "stop_leader": lambda f: self.stop(self._leader(f), self._stop_s(f)),
            "stick": lambda f: self.stick(self._worker(f), 4 * f.amount),
            "slow": self._slow,
            "late_beats": self._late_beats,
            "reset": self._reset,
            "cut": lambda f: self.cut(self._worker(f), 2 * f.amount),
            "kill_coordinator": lambda _: world.end_coordinator(),
            "kill_coordinator_and_leader": self._kill_coordinator_and_leader,
            "stop_coordinator": lambda f: self.stop_coordinator(1.5 * f.amount),
            "disk_fails": self._disk_fails,
            "disk_slow": self._disk_slow,
            "drain": self._drain,
            "client_leaves": lambda f: self._client(f, lambda c: c.leave_for(f.amount)),
            "client_cut": lambda f: self._client(f, lambda c: c.cut_off()),
            "cancel": lambda f: self._client(f, lambda c: c.cancel()),
            "poison": self._poison,
        }

    def inflict(self, fault: Fault) -> None:
        """Now."""
        self._world.note("FAULT %s %d %.3f", fault.kind, fault.target, fault.amount)
        if not self._world.workers:
            return  # the first has not come yet
        self._world.inflicted.append(fault)
        self._kinds[fault.kind](fault)
        self._world.replan_ticks()

    def heal(self) -> None:
        """Everything works again; what is dead is started."""
        world = self._world
        world.note("healed")
        world.disk.works, world.disk.slow_s = True, 0.0
        if world.coordinator is None:
            world.start_coordinator()
        elif world.coordinator.stopped:
            world.coordinator.resume()
        for worker in list(world.workers.values()):
            worker.slow_s = worker.late_s = 0.0
            self._resume(worker)
            self._uncut(worker)
            if worker.stuck:
                self._unstick(worker)
            world.start_worker(worker.worker_id)
        world.replan_ticks()

    # --- workers

    def stop(self, worker: Worker, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after a while."""
        world = self._world
        if worker.runs:
            world.catch_up(worker)
            worker.stop()
            world.checks.fault_begins(worker)
            world.timeline.after(seconds, lambda: self._resume(worker))

    def _resume(self, worker: Worker) -> None:
        if worker.stopped and worker.alive:
            self._world.note("%s goes on", worker.name)
            worker.resume()
            self._world.checks.fault_ends(worker)
            self._world.replan_ticks()

    def stick(self, worker: Worker, seconds: float) -> None:
        """Its engine stands still in a step."""
        if worker.runs and worker.run is not None and not worker.stuck:
            self._world.catch_up(worker)
            worker.stick()
            self._world.checks.fault_begins(worker)
            self._world.timeline.after(seconds, lambda: self._unstick(worker))

    def _unstick(self, worker: Worker) -> None:
        if worker.stuck and worker.alive:
            self._world.note("the engine of %s goes on", worker.name)
            worker.take(worker.unstick)
            self._world.checks.fault_ends(worker)
            self._world.replan_ticks()

    def cut(self, worker: Worker, seconds: float) -> None:
        """Nothing gets through between it and the coordinator."""
        if worker.alive and not worker.cut:
            self._world.catch_up(worker)
            worker.cut = True
            self._world.checks.fault_begins(worker)
            self._world.timeline.after(seconds, lambda: self._uncut(worker))

    def _uncut(self, worker: Worker) -> None:
        if worker.cut:
            self._world.note("%s is connected again", worker.name)
            worker.cut = False
            worker.release_held()
            worker.take(worker.tell)
            self._world.checks.fault_ends(worker)
            self._world.replan_ticks()

    def _kill_two(self, fault: Fault) -> None:
        alive = [worker for worker in self._world.workers.values() if worker.alive]
        for offset in range(min(2, len(alive))):
            self._world.end_worker(alive[(fault.target + offset) % len(alive)])

    def _kill_coordinator_and_leader(self, fault: Fault) -> None:
        leader = self._leader(fault)
        self._world.end_coordinator()
        self._world.end_worker(leader)

    def _slow(self, fault: Fault) -> None:
        self._worker(fault).slow_s = 0.3 * fault.amount

    def _late_beats(self, fault: Fault) -> None:
        worker = self._worker(fault)
        self._world.catch_up(worker)
        worker.late_s = 0.5 * fault.amount

    def _reset(self, fault: Fault) -> None:
        """One connection of a worker breaks."""
        worker = self._worker(fault)
        connections = list(worker.connections)
        if worker.alive and connections:
            self._world.catch_up(worker)
            self._world.checks.fault_begins(worker)
            connections[int(fault.amount * len(connections))].reset()
            self._world.checks.fault_ends(worker)

    def _drain(self, fault: Fault) -> None:
        coordinator, worker = self._world.coordinator, self._worker(fault)
        if coordinator is not None and coordinator.runs:
            record = coordinator.state.workers.get(worker.worker_id)
            if record is not None and record.alive and record.incarnation == worker.incarnation:
                self._world.checks.fault_begins(worker)
                coordinator.happened(events.DrainWorker(worker.worker_id))

    # --- the coordinator and its disk

    def stop_coordinator(self, seconds: float) -> None:
        coordinator = self._world.coordinator
        if coordinator is None or coordinator.stopped:
            return
        coordinator.ticks.catch_up_all()
        coordinator.stop()

        def resume() -> None:
            if coordinator.alive and coordinator.stopped:
                self._world.note("the coordinator goes on")
                coordinator.resume()

        self._world.timeline.after(seconds, resume)

    def _disk_fails(self, fault: Fault) -> None:
        disk = self._world.disk
        disk.works = False
        self._world.timeline.after(fault.amount, lambda: setattr(disk, "works", True))

    def _disk_slow(self, fault: Fault) -> None:
        disk = self._world.disk
        disk.slow_s = 0.1 * fault.amount
        self._world.timeline.after(1.0, lambda: setattr(disk, "slow_s", 0.0))

    # --- who it happens to

    def _worker(self, fault: Fault) -> Worker:
        workers = list(self._world.workers.values())
        return workers[fault.target % len(workers)]

    def _leader(self, fault: Fault) -> Worker:
        leaders = [run.leader for run in self._world.runs if not run.broken]
        return leaders[fault.target % len(leaders)] if leaders else self._worker(fault)

    def _client(self, fault: Fault, act: Callable[[Client], None]) -> None:
        clients = list(self._world.clients.values())
        if clients:
            act(clients[fault.target % len(clients)])

    def _poison(self, fault: Fault) -> None:
        """From now on a request takes its group along: at once, or only when it is decoded."""
        tokens = int(fault.amount < 0.5)
        self._client(fault, lambda c: self._world.poison.update({c.ask.request_id: tokens}))

    def _stop_s(self, fault: Fault) -> float:
        """Half of them shorter than a lease."""
        return 0.9 * fault.amount * 2 if fault.amount < 0.5 else 0.5 + 2 * fault.amount

"""Where the ranks of one attempt to form a group find each other: as the coordinator's store lets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ryzanstein_coordinator import actions

from .group_run import GroupRun

if TYPE_CHECKING:
    from .worker import Worker
    from .world import World


class Rendezvous:
    """One attempt per group at a time; it ends with the coordinator that opened it."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: Group → (epoch, nonce) of the attempt that is served.
        self._open: dict[str, tuple[int, int]] = {}
        self._waiting: dict[tuple[str, int, int], list[Worker | None]] = {}
        self._nonce = 0

    def open(self, group_id: str, epoch: int) -> int:
        """From now on only this attempt of the group is served; returns its nonce."""
        self.close(group_id)
        self._nonce += 1
        self._open[group_id] = (epoch, self._nonce)
        return self._nonce

    def close(self, group_id: str) -> None:
        """Whoever still waits for a peer is told so."""
        attempt = self._open.pop(group_id, None)
        if attempt is not None:
            for worker in self._waiting.pop((group_id, *attempt), ()):
                if worker is not None:
                    self._fail(worker, "UNAVAILABLE: this attempt is over")

    def close_all(self) -> None:
        """The coordinator is gone."""
        for group_id in list(self._open):
            self.close(group_id)

    def meet(self, worker: Worker, action: actions.JoinGroup, nonce: int) -> None:
        """The worker has come."""
        coordinator = self._world.coordinator
        attempt = action.epoch, nonce
        if coordinator is None or self._open.get(action.group_id) != attempt:
            worker.join_failed("UNAVAILABLE: this attempt is not served any more")
            return
        key = action.group_id, *attempt
        here = self._waiting.setdefault(key, [None] * len(action.members))
        rank = next(m.rank for m in action.members if m.incarnation == worker.incarnation)
        here[rank] = worker
        if all(here):
            self._world.timeline.after(0.003, lambda: self._form(key, action))
        else:
            self._world.timeline.after(self._world.config.join_timeout_s, lambda: self._time_out(key, worker))

    def left(self, worker: Worker) -> None:
        """It does not wait any more."""
        for here in self._waiting.values():
            for rank, waiting in enumerate(here):
                if waiting is worker:
                    here[rank] = None

    def _form(self, key: tuple[str, int, int], action: actions.JoinGroup) -> None:
        here = self._waiting.get(key)
        if here is None:
            return
        members = [worker for worker in here if worker is not None and worker.alive]
        if len(members) < len(here):
            return  # one has gone at the last moment: the others wait until they are told
        del self._waiting[key]
        group_id, epoch, _ = key
        run = GroupRun(self._world, group_id, epoch, members, action.limits)
        self._world.formed(run)
        for worker in members:
            worker.joined(run)
        if not run.whole:
            run.member_changed()

    def _time_out(self, key: tuple[str, int, int], worker: Worker) -> None:
        if worker in self._waiting.get(key, ()):
            self.left(worker)
            self._fail(worker, "UNAVAILABLE: not all ranks came")

    def _fail(self, worker: Worker, reason: str) -> None:
        def fail() -> None:
            if worker.epoch and worker.run is None:
                worker.join_failed(reason)

        self._world.timeline.after(0.001, lambda: worker.take(fail))

"""What must hold at every moment, and at the end of a schedule. A violation ends the schedule with its reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ryzanstein_coordinator import actions
from ryzanstein_coordinator.group_record import Cause, Phase, Recovery
from ryzanstein_coordinator.state import ClusterState

if TYPE_CHECKING:
    from .client import Client
    from .coordinator import Coordinator
    from .group_run import GroupRun
    from .worker import Worker
    from .world import World

#: A fault counts as the reason of a recovery whose first sign came so much later at most.
_LINGERS_S = 3.0
#: Beats are late by a few milliseconds, ticks by an interval.
_SLACK_S = 0.3


class ViolationError(AssertionError):
    """Something happened that must never happen."""


class Checks:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: Highest epoch that each group had, over all lives of the coordinator.
        self._epochs: dict[str, int] = {}
        self._ready: dict[str, int] = {}
        #: Incarnation → when it was faulty: begin, end.
        self._faulty: dict[str, list[tuple[float, float]]] = {}
        #: Incarnation → since when it can't take part in steps, or is not heard of.
        self._hurt_since_s: dict[str, float] = {}
        self.violations: list[str] = []

    def fail(self, reason: str) -> None:
        """The schedule shows a defect. Kept, because real code may catch what is raised through it."""
        self._world.note("VIOLATION: %s", reason)
        self.violations.append(reason)

    # --- tokens

    def tokens(self, client: Client, first_index: int, token_ids: Sequence[int], due_index: int) -> None:
        """What a call brought: the right tokens, each position once and in order."""
        if first_index != due_index:
            self.fail(f"{client.name}: token {first_index} came where {due_index} was due")
        end = first_index + len(token_ids)
        right = client.expected.tokens[first_index:end]
        if tuple(token_ids) != right:
            self.fail(f"{client.name}: tokens {first_index}.. are {list(token_ids)} instead of {list(right)}")

    def client_ended(self, client: Client) -> None:
        """With all its tokens, or with an honest error."""
        expected, now_s = client.expected, self._world.now_s
        if client.outcome in ("stop", "length"):
            if tuple(client.tokens) != expected.tokens or client.outcome != expected.outcome:
                self.fail(
                    f"{client.name} ended by {client.outcome} with {len(client.tokens)} tokens instead of by "
                    f"{expected.outcome} with {len(expected.tokens)}"
                )
            return
        ask = client.ask
        honest = {
            "DeadlineExceeded": bool(ask.timeout_s) and now_s >= client.begun_s + ask.timeout_s - 0.06,
            "Cancelled": client.cancelled,
            "NotFound": client.key in self._world.disk.unwritten,
            "QueueFull": len(self._world.clients) > 9 * self._world.setting.shape.sequences,
            "InternalError": "the group broke" in client.reason and self._may_be_given_up(client),
            # Nothing can be generated and nobody says when: the library tells so those who have not begun.
            "Unavailable": not client.tokens and "no group has served" in client.reason,
        }
        if not honest.get(client.outcome, False):
            self.fail(f"{client.name} ended with {client.outcome}: {client.reason}")

    def _may_be_given_up(self, client: Client) -> bool:
        """Poison, or one who was there at five breaks: three are another's poison at most, never those in isolation."""
        poison = self._world.poison
        others = sum(fault.kind != "poison" for fault in self._world.inflicted)
        return client.ask.request_id in poison or others + 3 * bool(poison) >= 5

    def accepted(self, group_id: str, epoch: int, response_epoch: int, placed_in: str | None) -> None:
        """A message of a leader was recorded."""
        if epoch != response_epoch:
            self.fail(f"{group_id} is in epoch {epoch}, but a step of epoch {response_epoch} was recorded")
        if placed_in != group_id:
            self.fail(f"a step of {group_id} was recorded for a request that belongs to {placed_in}")

    # --- epochs

    def told(self, worker: Worker, epoch: int) -> None:
        """A worker was told of an epoch."""
        if epoch > self._world.disk.highest_epoch:
            self.fail(f"{worker.name} was told epoch {epoch}, {self._world.disk.highest_epoch} is durable")

    def announced(self, coordinator: Coordinator, action: actions.AnnounceReady) -> None:
        if action.epoch <= self._ready.get(action.group_id, 0):
            self.fail(f"{action.group_id} is ready twice in epoch {action.epoch}")
        self._ready[action.group_id] = action.epoch

    def state_changed(self, coordinator: Coordinator, before: ClusterState, after: ClusterState) -> None:
        """Every decision of the control plane."""
        durable = self._world.disk.highest_epoch
        placed: set[str] = set()
        for old, group in zip(before.groups, after.groups, strict=True):
            if group is old:
                placed.update(member.worker_id for member in group.members)
                continue
            highest = self._epochs.get(group.group_id, 0)
            if group.epoch and (group.epoch < highest or group.epoch > durable):
                self.fail(
                    f"{group.group_id} announces epoch {group.epoch} after {highest}, {durable} is durable"
                )
            self._epochs[group.group_id] = max(highest, group.epoch)
            ids = [member.worker_id for member in group.members]
            if len(set(ids)) < len(ids) or placed.intersection(ids):
                self.fail(f"a worker has two ranks: {ids}")
            placed.update(ids)
            recovery, was = group.recovery, old.recovery
            if recovery is not None and recovery is not was:
                self._world.note("  %s: %s, %s", group.group_id, group.phase.value, recovery.reason)
                self._blame(group.group_id, recovery, was)

    def _blame(self, group_id: str, recovery: Recovery, was: Recovery | None) -> None:
        """A verdict is final when the group stands again; the death of a process is one at once."""
        sure = recovery.cause in (Cause.PROCESS, Cause.LEASE, Cause.STUCK)
        if recovery.culprit is None or (recovery.is_open and not sure):
            return
        if was is not None and not was.is_open and was.epoch == recovery.epoch:
            return  # only counts are added
        number = recovery.culprit.pid - 1000
        incarnation = f"{recovery.culprit.worker_id}-{number}"
        since_s = recovery.seen_at_s - _LINGERS_S
        if not any(end_s >= since_s for _, end_s in self._faulty.get(incarnation, ())):
            self.fail(
                f"{group_id} blames {incarnation}, which is healthy: {recovery.cause} {recovery.reason}"
            )

    def fault_begins(self, worker: Worker) -> None:
        """From now on the worker may be blamed."""
        if _hurt(worker):
            self._hurt_since_s.setdefault(worker.incarnation, self._world.now_s)
        spans = self._faulty.setdefault(worker.incarnation, [])
        if not spans or spans[-1][1] != math.inf:
            spans.append((self._world.now_s, math.inf))

    def fault_ends(self, worker: Worker) -> None:
        spans = self._faulty.get(worker.incarnation)
        if _hurt(worker):  # by another fault, which has a bound of its own
            self._hurt_since_s[worker.incarnation] = self._world.now_s
            return
        self._hurt_since_s.pop(worker.incarnation, None)
        if spans:
            spans[-1] = (spans[-1][0], self._world.now_s)

    # --- ranks

    def ranks_agree(self, run: GroupRun, step: int) -> None:
        """After a step: no block is lost, and none is kept for nobody. (That all ranks are in one state every plan
        says; here the ends of it.)"""
        scheduler = run.schedulers[step % len(run.schedulers)]
        try:
            scheduler.check_integrity()
        except AssertionError as error:
            self.fail(f"{run.group_id} step {step}: {error}")
        if not run.schedulers[0].has_work:
            hashes = {scheduler.state_hash() for scheduler in run.schedulers}
            if len(hashes) > 1:
                self.fail(f"the ranks of {run.group_id} differ after step {step} of epoch {run.epoch}")
            if used := scheduler.allocator.num_used:
                self.fail(f"{run.group_id} step {step}: {used} blocks belong to nobody")

    # --- health

    def down_s(self, coordinator: Coordinator) -> tuple[float, float]:
        """For how long no group could generate, as far as the coordinator can find out by now, and how long it may
        take to find out."""
        world, now_s = self._world, self._world.now_s
        since_s, bound_s = -math.inf, world.config.lease_ttl_s + _SLACK_S
        for run in world.runs:
            down_since_s = run.broken_since_s
            for member in run.members:
                hurt_since_s = self._hurt_since_s.get(member.incarnation)
                if hurt_since_s is not None:
                    down_since_s = min(down_since_s, hurt_since_s)
                    if member.stuck:
                        bound_s = max(bound_s, world.config.progress_deadline_s + _SLACK_S)
            since_s = max(since_s, down_since_s)
        # What it could not see does not count.
        since_s = max(since_s, coordinator.awake_since_s)
        return now_s - since_s, bound_s

    def readiness(self, coordinator: Coordinator) -> None:
        """Ready only while a group could generate, or until it is found out that none can."""
        down_s, bound_s = self.down_s(coordinator)
        if down_s > bound_s:
            ready, reason = coordinator.readiness()
            if ready:
                self.fail(f"ready for {down_s:.2f} s although no group could generate: {reason}")

    # --- the end

    def at_the_end(self) -> None:
        """All faults are over and time has passed: everything is as if nothing had been."""
        world, coordinator = self._world, self._world.coordinator
        for client in world.clients.values():
            if not client.outcome:
                self.fail(f"{client.name} hangs with {len(client.tokens)} of {len(client.expected.tokens)}")
        if coordinator is None:
            self.fail("there is no coordinator")
            return
        coordinator.ticks.catch_up_all()
        ready, reason = coordinator.readiness()
        if not ready or not coordinator.all_serve:
            states = "; ".join(f"{g.group_id} {g.phase.value}: {g.reason}" for g in coordinator.state.groups)
            self.fail(f"not all groups serve again: {reason}; {states}")
        if coordinator.router.counts() != (0, 0):
            self.fail(f"requests are left in the router: {coordinator.router.counts()}")
        serving = {group.epoch for group in coordinator.state.groups if group.phase is Phase.SERVING}
        for run in world.runs:
            used = {scheduler.allocator.num_used for scheduler in run.schedulers}
            if run.epoch in serving and not run.broken and used != {0}:
                self.fail(f"{run.group_id} keeps {used} blocks although nothing runs")


def _hurt(worker: Worker) -> bool:
    return worker.cut or not worker.computes

"""The next state while one event is applied: reads like changing records, ends as a new frozen state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .actions import Action
from .group_record import GroupRecord
from .standstills import Hearing
from .state import ClusterState
from .worker_record import Telemetry, WorkerRecord


@dataclass(frozen=True, slots=True)
class Decision:
    """What one event led to."""

    state: ClusterState
    actions: tuple[Action, ...]


class Draft:
    """Collects changes to a `ClusterState` and the actions that go with them. Lives for one event only."""

    def __init__(self, now_s: float, state: ClusterState) -> None:
        self.now_s = now_s
        self.actions: list[Action] = []
        self.highest_epoch = state.highest_epoch
        self.committed_epoch = state.committed_epoch
        self.draining = state.draining
        self.lease_floor_s = state.lease_floor_s
        self.standstills = state.standstills
        self._before = state
        self._workers: Mapping[str, WorkerRecord] = state.workers
        self._owned: dict[str, WorkerRecord] | None = None
        self._telemetry = state.telemetry
        self._groups = {group.group_id: group for group in state.groups}
        self._visible = False

    @property
    def hearing(self) -> Hearing:
        """Silence counts only while the coordinator could hear."""
        return Hearing(self.lease_floor_s, self.standstills)

    @property
    def changed(self) -> bool:
        """Something other than telemetry was touched."""
        before = self._before
        return (
            self._visible
            or self._workers is not before.workers
            or self.groups != before.groups
            or self.draining != before.draining
        )

    @property
    def workers(self) -> tuple[WorkerRecord, ...]:
        """A copy: workers may be changed while it is walked."""
        return tuple(self._workers.values())

    @property
    def groups(self) -> tuple[GroupRecord, ...]:
        return tuple(self._groups.values())

    @property
    def announced_epoch(self) -> int:
        return max((group.epoch for group in self._groups.values()), default=0)

    def worker(self, worker_id: str) -> WorkerRecord | None:
        return self._workers.get(worker_id)

    def process(self, worker_id: str, incarnation: str) -> WorkerRecord | None:
        """The worker, if it is still this process."""
        worker = self._workers.get(worker_id)
        return worker if worker is not None and worker.incarnation == incarnation else None

    def group(self, group_id: str) -> GroupRecord:
        return self._groups[group_id]

    def find_group(self, group_id: str | None) -> GroupRecord | None:
        return None if group_id is None else self._groups.get(group_id)

    def telemetry(self, worker_id: str) -> Telemetry | None:
        return self._telemetry.get(worker_id)

    def put_worker(self, worker: WorkerRecord) -> WorkerRecord:
        if self._workers.get(worker.worker_id) != worker:
            self._own_workers()[worker.worker_id] = worker
        return worker

    def set_worker(self, worker_id: str, **changes: Any) -> WorkerRecord:
        worker = self._workers[worker_id]
        if _holds(worker, changes):  # nearly always, and ten times as fast as a copy
            return worker
        return self.put_worker(replace(worker, **changes))

    def remove_worker(self, worker_id: str) -> None:
        del self._own_workers()[worker_id]
        self._telemetry = {key: value for key, value in self._telemetry.items() if key != worker_id}

    def set_group(self, group_id: str, **changes: Any) -> GroupRecord:
        group = self._groups[group_id]
        if not _holds(group, changes):
            group = self._groups[group_id] = replace(group, **changes)
        return group

    def put_telemetry(self, worker_id: str, telemetry: Telemetry) -> None:
        self._telemetry = {**self._telemetry, worker_id: telemetry}

    def visible(self) -> None:
        """Something that is only in the telemetry changed, and people want to see it."""
        self._visible = True

    def act(self, action: Action) -> None:
        self.actions.append(action)

    def finish(self, **changes: Any) -> Decision:
        """The new state; `revision` has grown if anything but telemetry changed."""
        before = self._before
        state = replace(
            before,
            workers=self._workers,
            telemetry=self._telemetry,
            groups=self.groups if self.groups != before.groups else before.groups,
            highest_epoch=self.highest_epoch,
            committed_epoch=self.committed_epoch,
            draining=self.draining,
            lease_floor_s=self.lease_floor_s,
            standstills=self.standstills,
            revision=before.revision + self.changed,
            **changes,
        )
        return Decision(state, tuple(self.actions))

    def _own_workers(self) -> dict[str, WorkerRecord]:
        """The mapping to write to: copied at the first change, so that a plain heartbeat copies nothing."""
        if self._owned is None:
            self._owned = dict(self._workers)
            self._workers = self._owned
        return self._owned


def _holds(record: object, changes: dict[str, Any]) -> bool:
    """Whether the record is as it should become."""
    return all(getattr(record, name) == value for name, value in changes.items())

"""Every decision of the control plane as one pure function: `(now, state, event) → (state, actions)`.

The orchestrator's loop feeds it what happens and carries out what it asks for; a test can feed it a million
seeded schedules of faults without a clock, a socket or a process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from . import events
from .config import OrchestratorConfig
from .draft import Decision, Draft
from .epoch_change import EpochChange
from .events import Event
from .failure_recovery import TREATMENTS, FailureRecoveryManager
from .group_life import GroupLife
from .group_record import Cause, GroupRecord, Phase
from .health_monitor import Fault, HealthMonitor
from .recovery_progress import progressed
from .resizing import Resizing
from .resource_allocator import ResourceAllocator
from .state import ClusterState
from .worker_life import WorkerLife
from .worker_record import Shard, WorkerRecord


class ControlPlane:
    """Composes the deciders. Holds configuration only."""

    def __init__(self, config: OrchestratorConfig, allocator: ResourceAllocator) -> None:
        self._config = config
        self.monitor = HealthMonitor(config)
        self.recovery = FailureRecoveryManager(config)
        self.allocator = allocator
        self._epochs = EpochChange(config)
        resizing = Resizing(config, allocator)
        self._groups = GroupLife(config, self._epochs, self.recovery, allocator, resizing)
        self._workers = WorkerLife(config, self.monitor, allocator, resizing)

    def initial(
        self,
        now_s: float,
        *,
        committed_epoch: int,
        previous: Mapping[str, tuple[str, ...]],
        model_lengths: Mapping[str, int] | None = None,
    ) -> ClusterState:
        """The state before anything has happened.

        Args:
            now_s: the clock's time.
            committed_epoch: the highest epoch in the store.
            previous: by group, who held its ranks last; fewer than the group is meant to have if it had shrunk.
            model_lengths: by group, how many tokens its streams were promised.
        """
        size = self._config.tensor_parallel_size
        held = {key: ids for key, ids in previous.items() if len(ids) <= size}  # else it was changed since
        fresh = GroupRecord(group_id="", size=size, full_size=size, vacant_since_s=now_s)
        lengths = model_lengths or {}
        groups = (
            replace(fresh, group_id=key, previous=held.get(key, ()), stored_model_len=lengths.get(key, 0))
            for key in group_ids(self._config)
        )
        return ClusterState(
            groups=tuple(groups),
            highest_epoch=committed_epoch,
            committed_epoch=committed_epoch,
            last_tick_s=now_s,
            lease_floor_s=now_s,
        )

    def step(self, now_s: float, state: ClusterState, event: Event) -> Decision:
        """Applies one event."""
        draft = Draft(now_s, state)
        if self.monitor.stood_still(now_s, state.last_tick_s):
            draft.lease_floor_s = now_s
        ticked: dict[str, float] = {}
        if isinstance(event, events.Tick):
            draft.standstills = self.monitor.standstills(now_s, state)
            self._tick(draft)
            ticked = {"last_tick_s": now_s}
        else:
            self._apply(draft, event)
        if draft.changed or ticked:
            for group in draft.groups:
                self._groups.advance(draft, group.group_id)
            self._workers.settle(draft)
        return draft.finish(**ticked)

    def can_spare(self, now_s: float, state: ClusterState, worker: WorkerRecord) -> bool:
        """Whether a standby could take this worker's rank now."""
        group = state.group(worker.group or "")
        if group is None or group.phase is not Phase.SERVING:
            return False
        return self._groups.successor(Draft(now_s, state), group, worker) is not None

    def _apply(self, draft: Draft, event: Event) -> None:  # noqa: PLR0912 - one branch per kind of event
        match event:
            case events.Registered():
                self._registered(draft, event)
            case events.StreamOpened():
                self._workers.stream_opened(draft, event)
            case events.StreamEnded():
                self._stream_ended(draft, event)
            case events.Beat():
                self._beat(draft, event)
            case events.EpochCommitted():
                draft.committed_epoch = max(draft.committed_epoch, event.epoch)
                for group in draft.groups:
                    if 0 < group.committing <= draft.committed_epoch:
                        self._epochs.announce(draft, group.group_id)
            case events.CommitFailed():
                self._commit_failed(draft, event)
            case events.ShardLoaded():
                self._shard_loaded(draft, event)
            case events.ShardRefused():
                self._shard_refused(draft, event)
            case events.Fenced():
                if worker := draft.process(event.worker_id, event.incarnation):
                    self._workers.fenced(draft, worker, event.epoch)
            case events.FenceFailed():
                if worker := draft.process(event.worker_id, event.incarnation):
                    self._workers.fence_failed(draft, worker)
            case events.Joined():
                if forming := self._forming(draft, event.group_id, event.epoch):
                    answered = forming.answered | {event.worker_id}
                    draft.set_group(event.group_id, answered=answered, backend=event.backend)
            case events.JoinFailed():
                if self._forming(draft, event.group_id, event.epoch) is not None:
                    self._groups.join_failed(
                        draft, event.group_id, event.worker_id, event.own_fault, event.reason
                    )
            case events.ExecuteBroken() | events.ExecuteAlive():
                self._leader_stream(draft, event)
            case events.FirstToken() | events.RequestsResumed() | events.ResumedGone():
                self._resumed(draft, event)
            case events.DrainWorker():
                if draft.worker(event.worker_id) is not None:
                    draft.set_worker(event.worker_id, draining=True)
            case events.DrainFailed():
                self._workers.drain_failed(draft, event)
            case events.DrainCluster():
                draft.draining = True

    def _tick(self, draft: Draft) -> None:
        for worker_id in self._workers.tick(draft):
            worker = draft.worker(worker_id)
            assert worker is not None
            age_s = self._workers.lease(draft, worker).age_s
            seen_s = draft.now_s - age_s + self._config.suspect_after_s
            reason = f"{_name(draft, worker)} was not heard of for {self._config.lease_ttl_s:g} s"
            self._lose(draft, worker, Cause.LEASE, reason, seen_at_s=seen_s)
        for group in draft.groups:
            self._look_for_fault(draft, group)

    def _look_for_fault(self, draft: Draft, group: GroupRecord) -> None:
        if group.phase not in (Phase.FORMING, Phase.SERVING):
            return
        workers = {m.worker_id: w for m in group.members if (w := draft.worker(m.worker_id)) is not None}
        reports = {m.worker_id: t for m in group.members if (t := draft.telemetry(m.worker_id)) is not None}
        fault = self.monitor.fault(draft.now_s, group, workers, reports, draft.hearing)
        if fault is None:
            return
        culprit = draft.worker(fault.culprit or "")
        if TREATMENTS[fault.cause].lost and culprit is not None and culprit.alive:
            self._lose(draft, culprit, fault.cause, fault.reason)
        else:
            self._groups.break_up(draft, group.group_id, fault)

    def _registered(self, draft: Draft, event: events.Registered) -> None:
        known = draft.worker(event.worker.worker_id)
        if known is not None and known.incarnation != event.worker.incarnation and known.alive:
            reason = f"{_name(draft, known)} was replaced by a new process ({event.worker.pid})"
            self._lose(draft, known, Cause.PROCESS, reason)
        self._workers.registered(draft, event)

    def _stream_ended(self, draft: Draft, event: events.StreamEnded) -> None:
        worker = draft.process(event.worker_id, event.incarnation)
        if worker is None or not worker.alive or worker.stream != event.stream:
            return
        if worker.leaving and worker.rank is None:  # as it was told to
            self._workers.lose(draft, worker, "drained")
            draft.remove_worker(worker.worker_id)
            return
        reason = f"{_name(draft, worker)} ended: {event.reason or 'its heartbeat stream broke'}"
        self._lose(draft, worker, Cause.PROCESS, reason)

    def _lose(
        self, draft: Draft, worker: WorkerRecord, cause: Cause, reason: str, *, seen_at_s: float | None = None
    ) -> None:
        """A process is gone: its group, if it was in one, goes on without it."""
        group = draft.find_group(worker.group)
        self._workers.lose(draft, worker, reason)
        if group is None:
            return
        if group.phase in (Phase.FORMING, Phase.SERVING) and worker.rank is not None:
            seen_s = draft.now_s if seen_at_s is None else seen_at_s
            fault = Fault(cause=cause, culprit=worker.worker_id, reason=reason, seen_at_s=seen_s)
            self._groups.break_up(draft, group.group_id, fault)
        elif group.recovering and group.recovery is not None:
            heard = draft.telemetry(worker.worker_id)
            blamed = self.recovery.blame(group.recovery, cause, worker, reason, heard)
            if blamed is group.recovery:
                return
            draft.set_group(group.group_id, recovery=blamed)
            if group.recovery.counted:  # a death does not, and nothing is waited for
                failures, not_before_s = max(0, group.failures - 1), min(group.not_before_s, draft.now_s)
                draft.set_group(group.group_id, failures=failures, not_before_s=not_before_s)

    def _beat(self, draft: Draft, event: events.Beat) -> None:
        self._workers.beat(draft, event)
        worker = draft.process(event.worker_id, event.incarnation)
        heard = event.telemetry
        group = None if worker is None else draft.find_group(worker.group)
        if worker is None or group is None or not (heard.fault is not None or heard.device_failure):
            return
        if worker.rank is not None:
            self._look_for_fault(draft, group)
        elif group.recovering and group.recovery is not None:
            draft.set_group(group.group_id, recovery=self.recovery.hear(group.recovery, worker, heard))

    def _commit_failed(self, draft: Draft, event: events.CommitFailed) -> None:
        for group in draft.groups:
            if group.committing == event.epoch:
                retry = self.recovery.retry(draft.now_s, group, may_repeat=True)
                draft.set_group(
                    group.group_id,
                    commit_failed=True,
                    failures=retry.failures,
                    not_before_s=max(retry.not_before_s, draft.now_s + self._config.backoff_s),
                    reason=f"epoch {event.epoch} can't be stored: {event.reason}",
                )
            elif group.phase is Phase.SERVING:  # it was to be the one in reserve
                not_before_s = draft.now_s + self._config.backoff_limit_s
                draft.set_group(group.group_id, commit_failed=True, not_before_s=not_before_s)

    def _shard_loaded(self, draft: Draft, event: events.ShardLoaded) -> None:
        worker = draft.process(event.worker_id, event.incarnation)
        if worker is None or worker.loading != event.key:
            return
        shard = Shard(event.key, event.loaded, event.has_files, event.weights_bytes)
        draft.put_worker(replace(worker.with_shard(shard), load_failures=0))
        group = draft.find_group(worker.group)
        if group is not None and group.phase is Phase.LOADING and worker.rank == event.key.rank:
            draft.set_group(group.group_id, answered=group.answered | {worker.worker_id})

    def _shard_refused(self, draft: Draft, event: events.ShardRefused) -> None:
        worker = draft.process(event.worker_id, event.incarnation)
        if worker is None or worker.loading != event.key:
            return
        group = draft.find_group(worker.group)
        placed = group is not None and group.phase is Phase.LOADING and worker.rank is not None
        reason = f"{worker.worker_id} could not load rank {event.key.rank}: {event.reason}"
        self._workers.load_failed(draft, worker, event, reason)
        if placed and group is not None:
            retry = self.recovery.retry(draft.now_s, group, may_repeat=not event.permanent)
            draft.set_group(group.group_id, failures=retry.failures, not_before_s=retry.not_before_s)
            self._epochs.begin(draft, group.group_id, reason)

    def _leader_stream(self, draft: Draft, event: events.ExecuteBroken | events.ExecuteAlive) -> None:
        group = draft.find_group(event.group_id)
        if group is None or group.phase is not Phase.SERVING or group.epoch != event.epoch:
            return
        if isinstance(event, events.ExecuteAlive):
            draft.set_group(group.group_id, stream=group.stream.alive(draft.now_s, flows=event.flows))
        else:
            self._look_for_fault(
                draft, draft.set_group(group.group_id, stream=group.stream.broken(draft.now_s))
            )

    def _resumed(
        self, draft: Draft, event: events.FirstToken | events.RequestsResumed | events.ResumedGone
    ) -> None:
        group = draft.find_group(event.group_id)
        if group is not None and group.recovery is not None and group.recovery.epoch == event.epoch:
            draft.set_group(group.group_id, recovery=progressed(group.recovery, event))

    def _forming(self, draft: Draft, group_id: str, epoch: int) -> GroupRecord | None:
        """The group, if it still forms this epoch."""
        group = draft.find_group(group_id)
        return group if group is not None and group.phase is Phase.FORMING and group.epoch == epoch else None


def group_ids(config: OrchestratorConfig) -> tuple[str, ...]:
    """Names of the groups; the same over restarts."""
    return tuple(f"g{index}" for index in range(config.data_parallel_size))


def _name(draft: Draft, worker: WorkerRecord) -> str:
    """The worker with its rank, or the one that it held in the epoch that broke."""
    rank = worker.rank
    group = draft.find_group(worker.group)
    if rank is None and group is not None and group.recovery is not None and group.recovery.is_open:
        held = (m.rank for m in group.recovery.members if m.incarnation == worker.incarnation)
        rank = next(held, None)
    return worker.worker_id if rank is None else f"{worker.worker_id} (rank {rank})"

"""The life of a worker outside its group: it comes, is heard of, is fenced, loads a likely shard, leaves."""

from __future__ import annotations

from dataclasses import replace

from .actions import AbortWorker, DrainProcess, DropWorker, LoadShard
from .config import OrchestratorConfig
from .draft import Draft
from .events import Beat, DrainFailed, Registered, ShardRefused, StreamOpened
from .group_record import EngineBounds, Phase
from .health_monitor import HealthMonitor, Lease
from .memory_plan import DeviceShare
from .placement import likely_rank
from .resizing import Resizing
from .resource_allocator import ResourceAllocator, device_users
from .worker_record import ShardKey, WorkerRecord

#: Between two attempts to fence a worker, or to load a shard again, in seconds.
RETRY_S = 0.25
#: As long, if the worker was not reached: its port may be blocked for a moment, or for days.
UNREACHED_S = 2.0
#: A worker that fails to load so often, in a row, is not asked again.
MAX_LOAD_FAILURES = 3
#: Lost workers that are still shown: ids that are made up anew at every start must not fill the memory.
MAX_LOST = 256


class WorkerLife:
    """Moves workers, apart from what their groups do with them."""

    def __init__(
        self,
        config: OrchestratorConfig,
        monitor: HealthMonitor,
        allocator: ResourceAllocator,
        resizing: Resizing,
    ) -> None:
        self._config = config
        self._monitor = monitor
        self._allocator = allocator
        self._resizing = resizing

    def registered(self, draft: Draft, event: Registered) -> None:
        """Takes the record in. The caller has dealt with an earlier process of this id."""
        draft.put_worker(event.worker)
        draft.highest_epoch = max(draft.highest_epoch, event.highest_epoch)

    def stream_opened(self, draft: Draft, event: StreamOpened) -> None:
        if (worker := draft.process(event.worker_id, event.incarnation)) is not None and worker.alive:
            draft.set_worker(worker.worker_id, stream=event.stream, heard=False)

    def beat(self, draft: Draft, event: Beat) -> None:
        """Takes the report in. Only what a person would call a change touches anything but the telemetry."""
        worker = draft.process(event.worker_id, event.incarnation)
        if worker is None or not worker.alive:
            return
        before, report = draft.telemetry(worker.worker_id), event.telemetry
        draft.put_telemetry(worker.worker_id, report)
        if (
            before is None
            or before.phase != report.phase
            or int(before.load_progress * 100) != int(report.load_progress * 100)
        ):
            draft.visible()
        worker = draft.set_worker(worker.worker_id, suspect=False, heard=True)
        if report.device_failure and not worker.failed_reason:  # no rank is given to it any more
            reason = f"its device {worker.device.name} has failed: {report.device_failure}"
            worker = draft.set_worker(worker.worker_id, failed_reason=reason)
        if report.leaving and not worker.draining:
            worker = draft.set_worker(worker.worker_id, draining=True)
        if report.epoch and worker.rank is None and not worker.fence_epoch and worker.usable:
            group = draft.find_group(worker.group)
            if group is None or worker.worker_id not in group.fencing:  # else it will be told in a moment
                # It is in an epoch that it has no place in: a restarted coordinator's, or an old one's.
                draft.highest_epoch = max(draft.highest_epoch, report.epoch)
                draft.set_worker(worker.worker_id, fence_epoch=max(report.epoch, worker.seen_epoch))

    def fenced(self, draft: Draft, worker: WorkerRecord, epoch: int) -> None:
        """It has left. Its next heartbeat says so too, but that may be a moment away."""
        report = draft.telemetry(worker.worker_id)
        if report is not None and report.epoch:
            draft.put_telemetry(worker.worker_id, replace(report, epoch=0, fault=None))
        behind = worker.fence_epoch > epoch
        draft.set_worker(
            worker.worker_id,
            fencing=False,
            fence_epoch=worker.fence_epoch if behind else 0,
            seen_epoch=max(worker.seen_epoch, epoch),
        )

    def fence_failed(self, draft: Draft, worker: WorkerRecord) -> None:
        draft.set_worker(worker.worker_id, fencing=False, fence_not_before_s=draft.now_s + RETRY_S)

    def drain_failed(self, draft: Draft, event: DrainFailed) -> None:
        """If the process is ending, its heartbeats end too, before it is told again."""
        worker = draft.process(event.worker_id, event.incarnation)
        if worker is not None and worker.leaving:
            draft.set_worker(worker.worker_id, drain_again_at_s=draft.now_s + UNREACHED_S)

    def load_failed(self, draft: Draft, worker: WorkerRecord, refused: ShardRefused, reason: str) -> None:
        """A worker that can't load is not asked again; one that may, or that was not reached, after a pause."""
        failures = worker.load_failures + refused.own_fault
        failed = refused.permanent or failures >= MAX_LOAD_FAILURES
        pause_s = RETRY_S * 2.0**failures if refused.own_fault else UNREACHED_S
        draft.set_worker(
            worker.worker_id,
            loading=None,
            loading_beside=False,
            strikes=worker.strikes + 1 if refused.own_fault else max(1, worker.strikes),
            load_failures=failures,
            failed_reason=reason if failed else "",
            load_not_before_s=draft.now_s + pause_s,
        )

    def tick(self, draft: Draft) -> list[str]:
        """Marks suspects, forgets the long lost, and returns the ids of workers whose lease has expired."""
        expired = []
        lost = [worker for worker in draft.workers if not worker.alive]
        lost.sort(key=lambda worker: (worker.lost_at_s, worker.registered_at_s), reverse=True)
        for place, worker in enumerate(lost):
            if place >= MAX_LOST or draft.now_s - worker.lost_at_s > self._config.forget_lost_after_s:
                draft.remove_worker(worker.worker_id)
        for worker in draft.workers:
            if not worker.alive:
                continue
            lease = self.lease(draft, worker)
            if lease.expired:
                expired.append(worker.worker_id)
            elif lease.suspect and not worker.suspect:
                draft.set_worker(worker.worker_id, suspect=True)
        return expired

    def lease(self, draft: Draft, worker: WorkerRecord) -> Lease:
        """How long it was not heard of."""
        report = draft.telemetry(worker.worker_id)
        return self._monitor.lease(draft.now_s, worker, report, draft.hearing)

    def lose(self, draft: Draft, worker: WorkerRecord, reason: str) -> WorkerRecord:
        """Its process is taken to be gone. If it is not, it has to be fenced when it comes back."""
        draft.act(DropWorker(worker.worker_id, worker.incarnation))
        return draft.set_worker(
            worker.worker_id,
            lost_reason=reason,
            lost_at_s=draft.now_s,
            suspect=False,
            loading=None,
            loading_beside=False,
            fencing=False,
            group=None,
            stream=0,
            heard=False,
        )

    def settle(self, draft: Draft) -> None:
        """Starts the calls that workers wait for, after their groups have decided."""
        for worker in draft.workers:
            if not worker.alive:
                continue
            if worker.fence_epoch and not worker.fencing and draft.now_s >= worker.fence_not_before_s:
                group = worker.group or ""
                reason = _fence_reason(draft, worker)
                draft.act(
                    AbortWorker(group, worker.fence_epoch, worker.worker_id, worker.incarnation, reason)
                )
                draft.set_worker(worker.worker_id, fencing=True, seen_epoch=worker.fence_epoch)
            elif worker.draining and worker.group is None and worker.stream and _is_to_be_told(draft, worker):
                epoch = max(draft.announced_epoch, worker.seen_epoch)
                draft.act(DrainProcess(epoch, worker.worker_id, worker.incarnation, "drained"))
                draft.set_worker(worker.worker_id, leaving=True, drain_again_at_s=0.0)
        self._preload(draft)

    def _preload(self, draft: Draft) -> None:
        """Lets standbys load the shards of the ranks that they would most likely be given: first for a group that
        can grow by them, then for one that may lose a rank.
        """
        claimed = self._preload_for_growth(draft)
        group = next(
            (g for g in draft.groups if g.limits and g.members and g.phase is not Phase.VACANT), None
        )
        if group is None or group.limits is None:
            return
        fits = (group.size, group.limits.max_model_len)
        spares = [
            worker
            for worker in draft.workers
            if worker.placeable and worker.group is None and worker.worker_id not in claimed
        ]
        held = [key for worker in spares for key in worker.keys]
        users = device_users(draft.workers)  # once: there may be a thousand of them
        for worker in spares:
            if worker.draining or worker.loading is not None or draft.now_s < worker.load_not_before_s:
                continue
            own = {key.rank for key in worker.keys if (key.size, key.max_model_len) == fits}
            beside = bool(own)
            if beside and len(worker.shards) >= group.size:
                continue  # it holds all
            share = self._allocator.share_among(worker, users)
            if not self._allocator.holds(group.limits, [share]):
                continue
            if beside and not self._has_room(worker, share, group.size):
                continue
            rank = likely_rank(group.size, held, own)
            wanted = ShardKey(rank, *fits)
            held.append(wanted)
            _load(draft, group.group_id, worker, wanted, group.limits, beside)

    def _preload_for_growth(self, draft: Draft) -> frozenset[str]:
        """Worker ids of the standbys that a group is to grow by. One group after the other, as they grow."""
        for group in draft.groups:
            growth, _ = self._resizing.growth(draft.now_s, group, draft.workers)
            if growth is None:
                continue
            for worker_id, key in growth.shards.items():
                worker = draft.worker(worker_id)
                assert worker is not None
                idle = worker.loading is None and draft.now_s >= worker.load_not_before_s
                if idle and key not in worker.keys:
                    _load(draft, group.group_id, worker, key, growth.limits, beside=False)
            return frozenset(growth.shards)
        return frozenset()

    def _has_room(self, worker: WorkerRecord, share: DeviceShare, size: int) -> bool:
        """Whether it can hold the shard of one more of `size` ranks. Pages are only taken in a group, which ends
        with one shard.
        """
        shards = worker.shards
        if len(shards) >= size or not all(shard.loaded for shard in shards):
            return False
        held = sum(shard.weights_bytes for shard in shards)
        return self._allocator.has_room(share, held + max(shard.weights_bytes for shard in shards))


def _load(
    draft: Draft, group_id: str, worker: WorkerRecord, key: ShardKey, limits: EngineBounds, beside: bool
) -> None:
    epoch = max(draft.announced_epoch, worker.seen_epoch)
    draft.act(LoadShard(group_id, epoch, worker.worker_id, worker.incarnation, key, limits, beside))
    draft.set_worker(worker.worker_id, loading=key, loading_beside=beside, seen_epoch=epoch)


def _is_to_be_told(draft: Draft, worker: WorkerRecord) -> bool:
    """Whether Drain is to be called: it was not, or that failed a while ago."""
    return not worker.leaving or 0.0 < worker.drain_again_at_s <= draft.now_s


def _fence_reason(draft: Draft, worker: WorkerRecord) -> str:
    group = draft.find_group(worker.group)
    if group is not None and group.epoch == worker.fence_epoch:
        return f"epoch {group.epoch} begins: {group.reason}"
    return "this worker has no rank in the current epoch"

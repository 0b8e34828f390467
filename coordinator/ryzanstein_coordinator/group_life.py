"""The life of a group as a pure machine: VACANT → LOADING → FORMING → SERVING, and through FENCING to the
next epoch.

One method per phase looks at the draft and takes the next step if its condition holds; `advance` calls them
until nothing changes. How an epoch ends stands in `epoch_change`, what a fault means in `failure_recovery`,
who gets which rank in `placement`, what fits in `resource_allocator`, how many ranks it has in `resizing`.
"""

from __future__ import annotations

from dataclasses import replace

from .actions import (
    AnnounceReady,
    CommitEpoch,
    JoinGroup,
    LoadShard,
    RememberMembers,
)
from .config import OrchestratorConfig
from .draft import Draft
from .epoch_change import EpochChange
from .failure_recovery import TREATMENTS, FailureRecoveryManager
from .group_record import Cause, EngineBounds, GroupRecord, Member, Phase
from .health_monitor import Fault
from .leader_stream import LeaderStream
from .placement import backend_of, may_hold_all, place
from .recovery_progress import closed
from .resizing import Resizing, ranks_text, served_by
from .resource_allocator import ResourceAllocator
from .size_change import SizeChange
from .worker_record import ShardKey, WorkerRecord


class GroupLife:
    """Moves groups through their phases."""

    def __init__(
        self,
        config: OrchestratorConfig,
        epochs: EpochChange,
        recovery: FailureRecoveryManager,
        allocator: ResourceAllocator,
        resizing: Resizing,
    ) -> None:
        self._config = config
        self._epochs = epochs
        self._recovery = recovery
        self._allocator = allocator
        self._resizing = resizing
        self._sizes = SizeChange(config, resizing)

    def advance(self, draft: Draft, group_id: str) -> None:
        """Takes every step whose condition holds now."""
        steps = {
            Phase.VACANT: self._vacant,
            Phase.FENCING: self._epochs.fence,
            Phase.LOADING: self._loading,
            Phase.FORMING: self._forming,
            Phase.SERVING: self._serving,
        }
        while True:
            before = draft.group(group_id)
            steps[before.phase](draft, before)
            if draft.group(group_id).phase is before.phase:
                return

    def break_up(self, draft: Draft, group_id: str, fault: Fault) -> None:
        """Ends the epoch of a group that forms or serves."""
        group = draft.group(group_id)
        culprit = None if fault.culprit is None else draft.worker(fault.culprit)
        treated = self._recovery.treat(fault, culprit)
        if treated is not None:
            draft.put_worker(treated)
        recovery = group.recovery
        if group.phase is Phase.SERVING:
            reports = {member.worker_id: draft.telemetry(member.worker_id) for member in group.members}
            recovery = self._recovery.open(draft.now_s, group, fault, culprit, reports)
        elif group.recovering and recovery is not None and culprit is not None and not culprit.alive:
            heard = draft.telemetry(culprit.worker_id)
            recovery = self._recovery.blame(recovery, fault.cause, culprit, fault.reason, heard)
        retry = self._recovery.retry(draft.now_s, group, may_repeat=TREATMENTS[fault.cause].may_repeat)
        draft.set_group(group_id, recovery=recovery, failures=retry.failures, not_before_s=retry.not_before_s)
        self._epochs.begin(draft, group_id, fault.reason, fault.cause)

    def join_failed(self, draft: Draft, group_id: str, worker_id: str, own_fault: bool, reason: str) -> None:
        """One rank could not join: all leave, and after a pause there is another attempt in a new epoch."""
        group = draft.group(group_id)
        if own_fault and (worker := draft.worker(worker_id)) is not None:
            draft.set_worker(worker_id, strikes=worker.strikes + 1)
        retry = self._recovery.retry(draft.now_s, group, may_repeat=True)
        pause_s = retry.not_before_s - draft.now_s
        text = f"{worker_id} could not join epoch {group.epoch}: {reason}"
        if pause_s > 0:
            text += f"; next attempt in {pause_s:.1f} s (failure {retry.failures} in a row)"
        draft.set_group(group_id, failures=retry.failures, not_before_s=retry.not_before_s)
        self._epochs.begin(draft, group_id, text)

    def _vacant(self, draft: Draft, group: GroupRecord) -> None:
        if draft.now_s < group.not_before_s:
            return
        candidates = _candidates(draft, group)
        group = self._sizes.settle(draft, group, candidates)
        size = group.growing_to or group.size
        placement = place(group.group_id, size, candidates, group.previous)
        if not placement.members and group.growing_to:
            self._sizes.give_up(draft, group, placement.reason)
            self._vacant(draft, draft.group(group.group_id))
            return
        if not placement.members or self._recovery.in_vain(draft.now_s, group):
            missing = self._recovery.missing(draft.now_s, group, placement.reason)
            reason = missing.reason
            if missing.overdue:
                smaller = self._sizes.shrink(draft, group, candidates)
                if smaller.limits is not None:
                    self._vacant(draft, draft.group(group.group_id))
                    return
                reason += f"; {smaller.reason}" if smaller.reason else ""
            if not placement.members:
                draft.set_group(group.group_id, reason=reason, replacement_overdue=missing.overdue)
                return
        if returning := self._returning(draft, group, placement.members):
            draft.set_group(group.group_id, reason=f"waiting for {', '.join(returning)} to come back")
            return
        workers = [_of(draft, member) for member in placement.members]
        limits, refusal = self._resizing.bounds(group, size, workers, draft.workers)
        if limits is None:
            if group.growing_to:
                self._sizes.give_up(draft, group, refusal)
                self._vacant(draft, draft.group(group.group_id))
            else:
                draft.set_group(group.group_id, reason=refusal)
            return
        if group.epoch_used or group.epoch == 0 or group.epoch < max(w.seen_epoch for w in workers):
            self._epochs.begin(draft, group.group_id, group.reason if group.recovering else placement.reason)
            return
        self._load(draft, group, placement.members, limits)

    def _returning(self, draft: Draft, group: GroupRecord, members: tuple[Member, ...]) -> list[str]:
        """Ranks of the last epoch of an earlier coordinator that may still register: they hold weights and
        streams.
        """
        if group.epoch or not group.previous or group.vacant_since_s is None:
            return []
        if draft.now_s - group.vacant_since_s >= self._config.lease_ttl_s:
            return []
        here = {member.worker_id for member in members}
        return [worker_id for worker_id in group.previous if worker_id not in here]

    def _load(
        self, draft: Draft, group: GroupRecord, members: tuple[Member, ...], limits: EngineBounds
    ) -> None:
        epoch, size = group.epoch, len(members)
        for member in members:
            key = ShardKey(member.rank, size, limits.max_model_len)
            worker = _of(draft, member)
            if worker.loading != key:
                draft.act(LoadShard(group.group_id, epoch, member.worker_id, member.incarnation, key, limits))
            draft.set_worker(
                member.worker_id,
                group=group.group_id,
                rank=member.rank,
                loading=key,
                loading_beside=False,  # what it loads as a spare is its own now
                seen_epoch=epoch,
            )
        draft.set_group(
            group.group_id,
            phase=Phase.LOADING,
            reason=f"loading {ranks_text(size)}",
            epoch_used=True,
            size=size,
            growing_to=0,
            grew_from=group.size if group.growing_to else 0,
            members=members,
            answered=frozenset(),
            limits=limits,
            replacement_overdue=False,
        )

    def _loading(self, draft: Draft, group: GroupRecord) -> None:
        workers = []
        for member in group.members:
            worker = draft.process(member.worker_id, member.incarnation)
            if worker is None or not worker.able:
                why = (
                    "replaced" if worker is None else worker.lost_reason or worker.failed_reason or "drained"
                )
                self._epochs.begin(
                    draft,
                    group.group_id,
                    f"lost {member.worker_id} (rank {member.rank}) while loading: {why}",
                )
                return
            workers.append(worker)
        if group.answered != {member.worker_id for member in group.members}:
            return
        if not may_hold_all(workers):
            self._wait_for_a_reader(draft, group)
            return
        assert group.limits is not None
        backend = backend_of(workers)
        draft.set_group(
            group.group_id,
            phase=Phase.FORMING,
            reason=f"{group.size} ranks join epoch {group.epoch}",
            answered=frozenset(),
            backend=backend,
        )
        draft.act(JoinGroup(group.group_id, group.epoch, group.members, backend, group.limits))

    def _wait_for_a_reader(self, draft: Draft, group: GroupRecord) -> None:
        """The members have told that they can't get all weights: others are chosen as soon as that helps."""
        ids = [member.worker_id for member in group.members]
        chosen = place(group.group_id, group.size, _candidates(draft, group), ids).members
        reason = f"none of {ranks_text(group.size)} can read the checkpoint"
        if chosen and may_hold_all([_of(draft, member) for member in chosen]):
            new = [member.worker_id for member in chosen if member.worker_id not in ids]
            self._epochs.begin(draft, group.group_id, f"{reason}: begins anew with {', '.join(new)}")
        else:
            reason = "no worker can read the checkpoint: give one of them --model-dir"
            draft.set_group(group.group_id, reason=reason, lacks_reader=True)

    def _forming(self, draft: Draft, group: GroupRecord) -> None:
        if group.answered != {member.worker_id for member in group.members}:
            return
        recovery = group.recovery
        if recovery is not None and recovery.is_open:
            recovery = replace(recovery, reformed_at_s=draft.now_s)
        assert group.limits is not None
        draft.set_group(
            group.group_id,
            phase=Phase.SERVING,
            reason=served_by(group) if group.is_short else f"epoch {group.epoch} stands",
            has_served=True,
            grew_from=0,
            shortfall=group.shortfall if group.is_short else "",
            planned={**group.planned, group.size: group.limits},
            answered=frozenset(),
            serving_since_s=draft.now_s,
            vacant_since_s=None,
            stream=LeaderStream(silent_since_s=draft.now_s),
            recovery=recovery,
        )
        for worker in draft.workers:  # whose rank another one has now
            if worker.group == group.group_id and worker.rank is None:
                draft.set_worker(worker.worker_id, group=None)
        draft.act(AnnounceReady(group.group_id, group.epoch, group.members[0], group.limits))
        draft.act(RememberMembers(group.group_id, group.epoch, group.members, group.limits.max_model_len))
        self._keep_reserve(draft)

    def _serving(self, draft: Draft, group: GroupRecord) -> None:
        if group.commit_failed and draft.now_s >= group.not_before_s:
            draft.set_group(group.group_id, commit_failed=False)
            self._keep_reserve(draft)
        members = [_of(draft, member) for member in group.members]
        since_s = draft.now_s if group.serving_since_s is None else group.serving_since_s
        served_s = draft.now_s - since_s
        if served_s >= self._config.stable_after_s:
            for worker in members:
                draft.set_worker(worker.worker_id, strikes=0)
            draft.set_group(group.group_id, failures=0, shrinks=group.shrinks if group.is_short else 0)
        if group.recovery is not None:
            recovery = closed(group.recovery, served_s, stopping=draft.draining)
            draft.set_group(group.group_id, recovery=recovery)
        leaving = next((worker for worker in members if worker.draining), None)
        if leaving is not None and not draft.draining and self.successor(draft, group, leaving) is not None:
            reason = f"{leaving.worker_id} (rank {leaving.rank}) is drained"
            fault = Fault(cause=Cause.DRAIN, culprit=leaving.worker_id, reason=reason, seen_at_s=draft.now_s)
            self.break_up(draft, group.group_id, fault)
        elif group.is_short and not draft.draining:
            growth = self._sizes.grow(draft, draft.group(group.group_id))
            if growth is not None:
                self.break_up(draft, group.group_id, growth)

    def _keep_reserve(self, draft: Draft) -> None:
        """One epoch is durable in advance, for the next fault or the next planned change."""
        if draft.committed_epoch <= draft.highest_epoch:
            draft.act(CommitEpoch(draft.highest_epoch + 1))

    def successor(self, draft: Draft, group: GroupRecord, leaving: WorkerRecord) -> WorkerRecord | None:
        """A standby that can take the rank of a worker that is to leave."""
        for worker in draft.workers:
            if worker.placeable and worker.group is None and not worker.draining:
                share = self._allocator.share(worker, draft.workers)
                same_kind = worker.device.kind == leaving.device.kind
                if same_kind and group.limits and self._allocator.holds(group.limits, [share]):
                    return worker
        return None


def _candidates(draft: Draft, group: GroupRecord) -> list[WorkerRecord]:
    """Workers that the group may give a rank."""
    return [w for w in draft.workers if w.placeable and w.group in (None, group.group_id)]


def _of(draft: Draft, member: Member) -> WorkerRecord:
    worker = draft.process(member.worker_id, member.incarnation)
    assert worker is not None, f"{member.worker_id} is a member but not a worker"
    return worker

"""From one epoch of a group to the next: its number, who has to leave the old one first, and until when that is
waited for. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from .actions import AnnounceLost, CommitEpoch, LeaveEpoch
from .config import OrchestratorConfig
from .draft import Draft
from .group_record import Cause, GroupRecord, Phase


class EpochChange:
    """Moves a group from any phase through FENCING to VACANT, where the next members are chosen."""

    def __init__(self, config: OrchestratorConfig) -> None:
        self._config = config

    def begin(self, draft: Draft, group_id: str, reason: str, cause: Cause | None = None) -> None:
        """Leaves the epoch that stands or forms, and takes the next number.

        The number is announced (to workers, by Abort, and to people) only when it is durable. One is kept in
        reserve while a group serves, so that a fault does not have to wait for the disk.
        """
        group = draft.group(group_id)
        here = [m for m in group.members if draft.process(m.worker_id, m.incarnation) is not None]
        joined = group.phase in (Phase.FORMING, Phase.SERVING)
        for member in here:
            draft.set_worker(member.worker_id, rank=None)
        if joined:
            draft.act(LeaveEpoch(group_id, group.epoch))
        if group.phase is Phase.SERVING:
            draft.act(AnnounceLost(group_id, group.epoch, reason, cause))
        draft.highest_epoch += 1
        draft.set_group(
            group_id,
            phase=Phase.FENCING,
            reason=reason,
            committing=draft.highest_epoch,
            members=(),
            previous=tuple(m.worker_id for m in group.members) or group.previous,
            fencing=frozenset(m.worker_id for m in here) if joined else frozenset(),
            fence_deadline_s=draft.now_s + self._config.fence_timeout_s,
            answered=frozenset(),
            lacks_reader=False,
            serving_since_s=None,
            vacant_since_s=draft.now_s if group.vacant_since_s is None else group.vacant_since_s,
        )
        if draft.highest_epoch <= draft.committed_epoch:
            self.announce(draft, group_id)
        else:
            draft.act(CommitEpoch(draft.highest_epoch))

    def announce(self, draft: Draft, group_id: str) -> None:
        """The epoch is durable: it is the group's, and the ranks of the last one are told to leave."""
        group = draft.group(group_id)
        epoch = group.committing
        recovery = group.recovery
        if recovery is not None and recovery.is_open:
            recovery = replace(recovery, epoch=epoch)
        draft.set_group(
            group_id, epoch=epoch, epoch_used=False, committing=0, commit_failed=False, recovery=recovery
        )
        for worker_id in sorted(group.fencing):
            worker = draft.worker(worker_id)
            # While the number was written, another process may have taken this id, and a rank of another group.
            if worker is not None and worker.group == group_id:
                draft.set_worker(worker_id, fence_epoch=epoch)

    def fence(self, draft: Draft, group: GroupRecord) -> None:
        """The step of the phase FENCING: over when all have left, or had their time to."""
        if group.committing:
            if group.commit_failed and draft.now_s >= group.not_before_s:
                draft.set_group(group.group_id, commit_failed=False)
                draft.act(CommitEpoch(group.committing))
            return
        inside = [
            worker_id
            for worker_id in group.fencing
            if (worker := draft.worker(worker_id)) is not None and worker.alive and worker.fence_epoch
        ]
        if inside and draft.now_s < group.fence_deadline_s:
            return
        recovery = group.recovery
        if recovery is not None and recovery.is_open and recovery.fenced_at_s is None:
            recovery = replace(recovery, fenced_at_s=draft.now_s)
        draft.set_group(group.group_id, phase=Phase.VACANT, fencing=frozenset(), recovery=recovery)

"""Applies what `resizing` decides: a group shrinks, takes up the size that it had, grows, or goes back after it
could not. Pure: draft in, draft changed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from .config import OrchestratorConfig
from .draft import Draft
from .group_record import Cause, GroupRecord, Phase
from .health_monitor import Fault
from .resizing import Resizing, Smaller, ranks_text, served_by, who_is_gone
from .worker_record import WorkerRecord


class SizeChange:
    """The steps of `GroupLife` that are about the number of ranks."""

    def __init__(self, config: OrchestratorConfig, resizing: Resizing) -> None:
        self._config = config
        self._resizing = resizing

    def settle(self, draft: Draft, group: GroupRecord, candidates: Collection[WorkerRecord]) -> GroupRecord:
        """Before members are chosen: the size that the group falls back to, if there is a reason to."""
        if group.grew_from:
            return self._go_back(draft, group)
        return group if group.epoch else self._take_up(draft, group, candidates)

    def shrink(self, draft: Draft, group: GroupRecord, candidates: Collection[WorkerRecord]) -> Smaller:
        """Goes on with fewer ranks, if that is possible; else nothing changes."""
        smaller = self._resizing.smaller(group, candidates, draft.workers)
        if smaller.limits is None:
            return smaller
        wait_s, gone = self._config.replacement_wait_s, who_is_gone(group, candidates)
        why = f"nobody took the place of {gone} within {wait_s:g} s"
        if not gone:
            why = f"{ranks_text(group.size)} could not form within {wait_s:g} s: {group.reason}"
        recovery = group.recovery
        if recovery is not None and recovery.is_open:
            went_on = f"goes on with {smaller.size} of {ranks_text(group.full)}"
            recovery = replace(recovery, reason=f"{recovery.reason}; {went_on}")
        draft.set_group(
            group.group_id,
            size=smaller.size,
            limits=smaller.limits,
            shortfall=why,
            shrinks=group.shrinks + 1,
            failures=0,
            recovery=recovery,
        )
        return smaller

    def grow(self, draft: Draft, group: GroupRecord) -> Fault | None:
        """The planned change of the epoch, if a group that serves can grow now; else its reason says what is
        missing.

        One group after the other, and none while another has no ranks at all: it needs the standbys more. None
        without an epoch in reserve either: streams must not stall for the disk.
        """
        growth, missing = self._resizing.growth(draft.now_s, group, draft.workers)
        if growth is not None:
            others = [other.group_id for other in draft.groups if other.phase is not Phase.SERVING]
            missing = growth.waits_for or (f"{', '.join(others)} comes first" if others else "")
        reason = served_by(group) + (f"; {missing}" if missing else "")
        draft.set_group(group.group_id, reason=reason)
        if growth is None or missing or draft.committed_epoch <= draft.highest_epoch:
            return None
        draft.set_group(group.group_id, growing_to=growth.size)
        return Fault(
            cause=Cause.RESIZE,
            culprit=None,
            reason=f"grows from {group.size} to {ranks_text(growth.size)} with {', '.join(growth.shards)}",
            seen_at_s=draft.now_s,
        )

    def give_up(self, draft: Draft, group: GroupRecord, reason: str) -> GroupRecord:
        """The members that it was to grow by can't be had any more."""
        return self._failed(draft, group, group.size, reason)

    def _go_back(self, draft: Draft, group: GroupRecord) -> GroupRecord:
        """An epoch with more ranks did not come to stand. Nobody waits for its new members: without them it has
        served a moment ago.
        """
        return self._failed(draft, group, group.grew_from, group.reason)

    def _failed(self, draft: Draft, group: GroupRecord, size: int, reason: str) -> GroupRecord:
        recovery = group.recovery
        if recovery is not None and recovery.is_open and recovery.cause is Cause.RESIZE:
            text = f"{recovery.reason}, in vain: {reason}; goes on with {size} of {ranks_text(group.full)}"
            recovery = replace(recovery, reason=text)
        return draft.set_group(
            group.group_id,
            size=size,
            limits=group.planned[size],
            growing_to=0,
            grew_from=0,
            shrinks=group.shrinks + 1,
            recovery=recovery,
        )

    def _take_up(self, draft: Draft, group: GroupRecord, candidates: Collection[WorkerRecord]) -> GroupRecord:
        """The coordinator was started again while the group served: its workers have seen epochs, hold weights,
        and streams wait for them. If it had fewer ranks than it is meant to have, it goes on with these at once.
        """
        workers = [w for w in candidates if w.worker_id in group.previous and w.seen_epoch]
        if not workers:
            return group
        group = draft.set_group(group.group_id, has_served=True)
        size = len(group.previous)
        if group.size <= size or len(workers) < size:
            return group
        limits, _ = self._resizing.bounds(group, size, workers, draft.workers)
        if limits is None:
            return group
        why = "so it did when the coordinator was started again"
        return draft.set_group(group.group_id, size=size, limits=limits, shortfall=why)

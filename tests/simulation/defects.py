"""Defects put into the real code on purpose: what the simulator must find."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_coordinator import (
    actions,
    epoch_change,
    front_door,
    group_stream,
    recording,
    router,
    serving_group,
    suspicion,
)
from ryzanstein_coordinator.draft import Draft
from ryzanstein_coordinator.output import RecordedOutput
from ryzanstein_coordinator.requests import Ending, RequestRecord, Suspicion
from ryzanstein_coordinator.serving_group import ServingGroup
from ryzanstein_shard_worker import kv_cache, scheduler

from .membership import Membership


def record_whatever_comes(patch: pytest.MonkeyPatch) -> None:
    """Tokens are recorded without a look at their position: after a replay by a slower path they come twice."""
    real = recording.record_step

    def unchecked(outputs: Sequence[Any], running: Any, now: float) -> Any:
        for output in outputs:
            record = running.get(output.sequence_id)
            if record is not None and output.token_ids:
                output.first_index = len(record.output)
        return real(outputs, running, now)

    patch.setattr(router, "record_step", unchecked)
    resubmit_with_too_few(patch)


def resubmit_with_too_few(patch: pytest.MonkeyPatch) -> None:
    """A request that goes on is submitted without the last token that was recorded."""
    real = group_stream.submission

    def shorter(record: RequestRecord) -> shard_worker_pb2.SubmitSequence:
        message = real(record)
        if message.emitted_token_ids:
            del message.emitted_token_ids[-1]
        return message

    patch.setattr(group_stream, "submission", shorter)


def replay_nothing(patch: pytest.MonkeyPatch) -> None:
    """What stalled is forgotten when its group comes back."""
    patch.setattr(ServingGroup, "take_stalled", lambda self: (self.stalled.clear(), [])[1])


def listen_to_old_streams(patch: pytest.MonkeyPatch) -> None:
    """A lost group's stream stays open, its epoch is not looked at, and a request keeps its number for ever."""
    real_step, real_submit = router.Router._step, serving_group.ServingGroup.submit

    def any_epoch(self: router.Router, group: ServingGroup, response: Any) -> None:
        epoch, group.epoch = group.epoch, response.epoch
        try:
            real_step(self, group, response)
        finally:
            group.epoch = epoch

    def same_number(self: ServingGroup, record: RequestRecord, sequence_id: int) -> None:
        real_submit(self, record, record.arrival)

    patch.setattr(group_stream.GroupStream, "close", lambda self: None)
    patch.setattr(router.Router, "_step", any_epoch)
    patch.setattr(ServingGroup, "submit", same_number)


def announce_before_durable(patch: pytest.MonkeyPatch) -> None:
    """The next epoch is told before it is on the disk."""
    real = epoch_change.EpochChange.begin

    def begin(self: epoch_change.EpochChange, draft: Draft, group_id: str, reason: str) -> None:
        durable, draft.committed_epoch = draft.committed_epoch, draft.highest_epoch + 1
        real(self, draft, group_id, reason)
        draft.committed_epoch = durable
        draft.act(actions.CommitEpoch(draft.highest_epoch))

    patch.setattr(epoch_change.EpochChange, "begin", begin)


def keep_a_block(patch: pytest.MonkeyPatch) -> None:
    """One block of a longer sequence is never given back."""
    real = kv_cache.BlockAllocator.free

    def free(self: kv_cache.BlockAllocator, blocks: list[int]) -> None:
        if len(blocks) > 1:
            blocks.pop()
        real(self, blocks)

    patch.setattr(kv_cache.BlockAllocator, "free", free)


def free_what_others_hold(patch: pytest.MonkeyPatch) -> None:
    """Whoever ends gives back its blocks for good, also those that others share."""
    real = kv_cache.BlockAllocator.free

    def free(self: kv_cache.BlockAllocator, blocks: list[int]) -> None:
        for block in blocks:
            self._references[block] = 1
        real(self, blocks)

    patch.setattr(kv_cache.BlockAllocator, "free", free)


def followers_differ(patch: pytest.MonkeyPatch) -> None:
    """Every other rank takes the queue from its other end."""
    real, made = scheduler.Scheduler.apply, WeakKeyDictionary[scheduler.Scheduler, int]()
    numbers = itertools.count()

    def apply(self: scheduler.Scheduler, plan: Any) -> None:
        real(self, plan)
        if self not in made:
            made[self] = next(numbers)
        if made[self] % 2 and len(self.waiting) > 1:
            self.waiting.reverse()

    patch.setattr(scheduler.Scheduler, "apply", apply)


def ignore_the_callers_tokens(patch: pytest.MonkeyPatch) -> None:
    """Attach goes on where the coordinator's record ends, whatever the caller has."""
    real = front_door.FrontDoor.attach

    async def attach(
        self: front_door.FrontDoor, request_id: str, received: Sequence[int], *, owner: str = ""
    ) -> Any:
        record = self._store.find((owner, request_id))
        known = len(record.output) if isinstance(record, RequestRecord) else 0
        return await real(self, request_id, received[:known], owner=owner)

    patch.setattr(front_door.FrontDoor, "attach", attach)


def fence_by_name(patch: pytest.MonkeyPatch) -> None:
    """A process that took a dead one's id is told to leave in its place. (It was so, once.)"""
    real = epoch_change.EpochChange.announce

    def announce(self: epoch_change.EpochChange, draft: Draft, group_id: str) -> None:
        group = draft.group(group_id)
        real(self, draft, group_id)
        for worker_id in group.fencing:
            if draft.worker(worker_id) is not None:
                draft.set_worker(worker_id, fence_epoch=group.committing)

    patch.setattr(epoch_change.EpochChange, "announce", announce)


def forget_named_epochs(patch: pytest.MonkeyPatch) -> None:
    """A worker registers with the epoch of its last heartbeat only. (It was so, once.)"""
    patch.setattr(Membership, "seen_epoch", lambda self: self.highest_epoch)


def lose_the_end(patch: pytest.MonkeyPatch) -> None:
    """A stop behind the caller's own tokens is overlooked: the request goes on for ever."""

    def record_from_caller(record: RequestRecord, token_ids: Sequence[int]) -> Ending | None:
        RecordedOutput.extend(record.output, token_ids)
        record.wake()
        return None

    patch.setattr(router, "record_from_caller", record_from_caller)


def stay_ready(patch: pytest.MonkeyPatch) -> None:
    """Health says yes while nobody is heard of."""
    from ryzanstein_coordinator.health_monitor import HealthMonitor

    real = HealthMonitor.lease
    patch.setattr(
        HealthMonitor, "lease", lambda *arguments: replace(real(*arguments), expired=False, suspect=False)
    )


def blame_the_leader(patch: pytest.MonkeyPatch) -> None:
    """Whoever died, the leader is named."""
    from ryzanstein_coordinator import failure_recovery

    real = failure_recovery._culprit

    def culprit(worker: Any, group: Any) -> Any:
        return replace(real(worker, group), worker_id=group.members[0].worker_id) if group.members else None

    patch.setattr(failure_recovery, "_culprit", culprit)


def suspects_in_company(patch: pytest.MonkeyPatch) -> None:
    """A suspect is always computed beside the others, and one token makes anybody innocent. (It was so, once.)"""
    patch.setattr(Suspicion, "needs_isolation", property(lambda _self: False))
    patch.setattr(suspicion, "_INNOCENT_TOKENS", 1)


def lose_who_makes_room(patch: pytest.MonkeyPatch) -> None:
    """Those that are taken out for one that must be alone are forgotten."""
    real = ServingGroup.take_running
    patch.setattr(ServingGroup, "take_running", lambda self: (real(self), [])[1])


#: What is wrong, and which faults make it show; none: whichever come.
DEFECTS: dict[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]] = {
    record_whatever_comes: (),
    resubmit_with_too_few: (),
    replay_nothing: (),
    listen_to_old_streams: (),
    announce_before_durable: (),
    keep_a_block: (),
    free_what_others_hold: (),
    followers_differ: (),
    ignore_the_callers_tokens: ("kill_coordinator_and_leader", "client_leaves"),
    lose_the_end: ("kill_coordinator",),
    stay_ready: (),
    blame_the_leader: (),
    suspects_in_company: ("poison",),
    lose_who_makes_room: ("poison",),
}

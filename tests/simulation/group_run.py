"""The steps of one group in one epoch: the real scheduler on every rank, real plans, and no model.

As `step_loop` and `epoch` of the shard worker do it; a rank that dies, hangs or leaves stops the others where it would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ryzanstein.v1 import sampling_pb2, shard_worker_pb2
from ryzanstein_coordinator.group_record import EngineBounds
from ryzanstein_coordinator.worker_record import FaultReport
from ryzanstein_shard_worker.batch import Batch
from ryzanstein_shard_worker.inbox import Arrived, Inbox
from ryzanstein_shard_worker.kv_cache import BlockAllocator
from ryzanstein_shard_worker.scheduler import Limits, Scheduler
from ryzanstein_shard_worker.sequence import Sequence

from .model import next_token

if TYPE_CHECKING:
    from .worker import Worker
    from .world import World

#: An idle leader plans nothing so often.
KEEP_ALIVE_S = 0.1
#: What leaders measure and so allow beside streams that decode; None: as much as fits.
_PREFILL_TOKENS = (None, 4, 0, 16)


@dataclass(slots=True)
class _Step:
    """One that is under way."""

    number: int
    plan: bytes
    arrived: Arrived
    begun_s: float


class GroupRun:
    """From the moment that all ranks have joined until all have left."""

    def __init__(
        self, world: World, group_id: str, epoch: int, members: list[Worker], bounds: EngineBounds
    ) -> None:
        self._world = world
        self.group_id, self.epoch = group_id, epoch
        self.members = members
        self.inside = list(members)
        limits = Limits(bounds.max_num_seqs, bounds.max_batched_tokens, bounds.max_model_len)
        pool = bounds.num_blocks, bounds.block_size
        caching = bounds.prefix_caching
        self.schedulers = [Scheduler(limits, BlockAllocator(*pool, prefix_caching=caching)) for _ in members]
        self.inbox = Inbox()
        self.steps = 0
        self.last_step_s = world.now_s
        #: Since when a rank keeps the others from finishing a step; None: none does.
        self.blocked_since_s: float | None = None
        self._sampled: list[tuple[Sequence, int]] = []
        self._step: _Step | None = None
        self._poked = False
        self.broken = False
        #: Since when a rank is missing.
        self.broken_since_s = math.inf

    @property
    def leader(self) -> Worker:
        return self.members[0]

    @property
    def busy(self) -> bool:
        """It has something to do, or has not said yet that it is done."""
        return not self.broken and (
            self._step is not None or self._poked or bool(self._sampled) or self.schedulers[0].has_work
        )

    @property
    def whole(self) -> bool:
        """Every rank computes."""
        return not self.broken and all(member.computes for member in self.inside)

    def progress_age_s(self, now_s: float) -> float:
        """Seconds since the last step or keep-alive."""
        if self.blocked_since_s is not None:
            return now_s - max(self.blocked_since_s, self.last_step_s)
        idle_s = now_s - self.last_step_s
        return idle_s % KEEP_ALIVE_S if self._step is None else idle_s

    # --- what happens to it

    def poke(self) -> None:
        """There may be something to do."""
        if self._poked or self._step is not None or self.broken:
            return
        self._poked = True
        self._world.timeline.after(0.0002, self._begin)

    def member_changed(self) -> None:
        """A rank was stopped, got stuck, or goes on."""
        if self.whole:
            self.blocked_since_s = None
            if self._step is not None:
                self._world.timeline.after(0.0005, self._finish)
            else:
                self.poke()
        elif self.blocked_since_s is None:
            self.blocked_since_s = self._world.now_s

    def member_gone(self, gone: Worker) -> None:
        """A rank has left: the others' next collective fails, each after a while of its own."""
        if gone not in self.inside:
            return
        world, rank = self._world, self.members.index(gone)
        self.inside.remove(gone)
        if not self.broken:
            self.broken, self.broken_since_s = True, world.now_s
        if self.blocked_since_s is None:
            self.blocked_since_s = world.now_s
        pause_s = 0.0 if self._step is not None else KEEP_ALIVE_S * world.random()
        for peer in self.inside:
            fault = FaultReport(
                kind="collective", message=f"rank {rank} left", epoch=self.epoch, peer_rank=rank
            )
            world.timeline.after(
                pause_s + 0.005 + 0.02 * world.random(),
                lambda peer=peer, fault=fault: peer.take(  # type: ignore[misc]
                    lambda: peer.step_failed(self, fault)
                ),
            )

    # --- the leader's loop

    def _begin(self) -> None:
        self._poked = False
        if self._step is not None or self.broken:
            return
        if not self.whole:
            if self.blocked_since_s is None:
                self.blocked_since_s = self._world.now_s
            return
        scheduler = self.schedulers[0]
        arrived = self.inbox.take(0.0)
        if not (arrived or self._sampled or scheduler.has_work):
            return
        self.steps += 1
        plan = shard_worker_pb2.StepPlan(
            epoch=self.epoch,
            step=self.steps,
            arrivals=arrived.arrivals,
            departures=arrived.departures,
            state_hash=scheduler.state_hash(),
            prefill_tokens=_PREFILL_TOKENS[self.steps % len(_PREFILL_TOKENS)],
        )
        for sequence, token in self._sampled:
            plan.sampled.add(sequence_id=sequence.sequence_id, token_ids=(token,))
        now_s = self.last_step_s = self._world.now_s  # keep-alives came until now
        self._step = _Step(self.steps, plan.SerializeToString(), arrived, now_s)
        slowest_s = max(member.slow_s for member in self.members)
        self._world.timeline.after(0.004 + 0.012 * self._world.random() + slowest_s, self._finish)

    def _finish(self) -> None:
        step = self._step
        if step is None or self.broken:
            return
        if not self.whole:
            if self.blocked_since_s is None:
                self.blocked_since_s = self._world.now_s
            return
        self._step = None
        plan = shard_worker_pb2.StepPlan.FromString(step.plan)
        batch = self._advance_all(plan)
        if self._poisoned(batch):
            self._world.note("%s computes poison in step %d", self.group_id, plan.step)
            self._world.end_worker(self.members[int(self._world.random() * len(self.members))])
            return
        self._sampled = [
            (sequence, next_token(sequence.tokens, sequence.params.seed)) for sequence in batch.sampling
        ]
        self.last_step_s = self._world.now_s
        if batch.slices or batch.dropped or step.arrived:
            self.leader.publish(self, self._response(step, batch))
        self.poke()

    def _poisoned(self, batch: Batch) -> bool:
        """A process dies of what it computes."""
        poison = self._world.poison
        if not poison:
            return False
        return any(
            piece.sequence.num_output - piece.sequence.num_replayed >= poison[piece.sequence.request_id]
            for piece in batch.slices
            if piece.sequence.request_id in poison
        )

    def _advance_all(self, plan: shard_worker_pb2.StepPlan) -> Batch:
        """Every rank applies the plan and schedules: all must come to the same batch and state."""
        checks = self._world.checks
        leaders: Batch | None = None
        for rank, scheduler in enumerate(self.schedulers):
            if rank and plan.state_hash != scheduler.state_hash():
                checks.fail(
                    f"rank {rank} of {self.group_id} differs at step {plan.step} of epoch {self.epoch}"
                )
            scheduler.apply(plan)
            batch = scheduler.schedule()
            if leaders is None:
                leaders = batch
            elif len(batch.slices) != len(leaders.slices) or batch.num_tokens != leaders.num_tokens:
                checks.fail(f"rank {rank} of {self.group_id} has another batch in step {plan.step}")
        assert leaders is not None
        checks.ranks_agree(self, plan.step)
        return leaders

    def _response(self, step: _Step, batch: Batch) -> shard_worker_pb2.ExecuteResponse:
        """What the step brought, for the coordinator. Sequences still lack the new token here."""
        scheduler = self.schedulers[0]
        response = shard_worker_pb2.ExecuteResponse(
            epoch=self.epoch,
            step=step.number,
            stats=scheduler.stats(),
            step_duration_s=self._world.now_s - step.begun_s,
        )
        max_model_len = scheduler.limits.max_model_len
        outputs = response.outputs
        for sequence, token in self._sampled:
            outputs.add(
                sequence_id=sequence.sequence_id,
                first_index=sequence.num_output,
                token_ids=(token,),
                finish_reason=sequence.finish_reason(token, max_model_len),
            )
        for sequence, reason, error in batch.dropped:
            assert reason != sampling_pb2.FINISH_REASON_UNSPECIFIED
            outputs.add(
                sequence_id=sequence.sequence_id,
                first_index=sequence.num_output,
                finish_reason=reason,
                error=error,
            )
        return response

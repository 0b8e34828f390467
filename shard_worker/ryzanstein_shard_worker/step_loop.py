"""The step, over and over: plan, schedule, run, sample, publish. One loop for the leader, one for the other ranks.

Ranks stay in step because the plan travels at the start of every numbered step and all of them apply it to the same
scheduler. The tokens sampled in one step reach the other ranks with the plan of the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from ryzanstein.failpoints import failpoint
from ryzanstein.v1 import sampling_pb2, shard_worker_pb2

from .batch import Batch
from .communication import CommunicationProfiler, StepChannel
from .inbox import Inbox
from .prefill_pace import PrefillPace
from .sampling import Sampled, Scored, sample, score
from .scheduler import Scheduler
from .sequence import UNFINISHED

Publish = Callable[[shard_worker_pb2.ExecuteResponse], None]


class DivergedError(Exception):
    """This rank's scheduler is in another state than the leader's: its tokens would be wrong."""


class RunsBatches(Protocol):
    """What the loop needs of a `Runner`."""

    def run(self, batch: Batch) -> Tensor: ...


@dataclass(slots=True)
class Progress:
    """How far the engine is. Written by the engine thread, read by the control thread; each field is one word."""

    step: int = 0
    #: On time.monotonic's clock, of the last finished step or keep-alive.
    last_step_at: float = field(default_factory=time.monotonic)
    step_duration_s: float = 0.0
    #: Whether there were sequences in the last step, running or waiting.
    busy: bool = False
    #: A step may take so long: a rank that does not answer is waited for.
    patience_s: float = 0.0

    def finished(self, step: int, started_at: float, now: float) -> None:
        self.step = step
        self.last_step_at = now
        # An exponential mean over about the last 16 steps.
        self.step_duration_s += (now - started_at - self.step_duration_s) / 16


@dataclass(frozen=True, slots=True)
class StepLoop:
    """What both loops share."""

    epoch: int
    handler: CommunicationProfiler
    channel: StepChannel
    scheduler: Scheduler
    runner: RunsBatches
    progress: Progress
    #: On the leader: how much a step may prefill beside streams that decode. None: as much as fits.
    pace: PrefillPace | None = None

    def compute(self, plan: shard_worker_pb2.StepPlan) -> tuple[Batch, Tensor | None]:
        """Applies the plan and runs the batch that follows from it; an empty one is a keep-alive of all ranks."""
        self.scheduler.apply(plan)
        batch = self.scheduler.schedule()
        self.progress.busy = bool(batch.slices) or self.scheduler.has_work
        failpoint(f"step.{batch.kind}")
        if batch.slices:
            logits = self.runner.run(batch)
            self.handler.settle()
            failpoint("step.computed")
            return batch, logits
        self.handler.barrier()
        return batch, None


def lead(
    loop: StepLoop,
    inbox: Inbox,
    publish: Publish,
    *,
    keep_alive_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Rank 0's loop: until the inbox says stop.

    Args:
        clock: of the steps' durations, and of `Progress.last_step_at`.

    Raises:
        CommunicationError: a rank did not answer, or the group was aborted.
    """
    sampled: list[Sampled] = []
    step = 0
    while True:
        busy = bool(sampled) or loop.scheduler.has_work
        arrived = inbox.take(0.0 if busy else keep_alive_s)
        started_at = clock()
        loop.handler.step_started()
        step += 1
        plan = shard_worker_pb2.StepPlan(
            epoch=loop.epoch,
            step=step,
            arrivals=arrived.arrivals,
            departures=arrived.departures,
            state_hash=loop.scheduler.state_hash(),
            stop=arrived.stop,
        )
        for result in sampled:
            if result.error:
                plan.departures.add(
                    sequence_id=result.sequence.sequence_id, reason=sampling_pb2.FINISH_REASON_ERROR
                )
            else:
                plan.sampled.add(sequence_id=result.sequence.sequence_id, token_ids=[result.token])
        if loop.pace is not None:
            plan.prefill_tokens = loop.pace.tokens(_going_on(loop.scheduler, sampled))
        failpoint("step.planned")
        loop.channel.send(plan.SerializeToString())
        if plan.stop:
            return
        batch, logits = loop.compute(plan)
        sampling = batch.sampling
        sampled = [] if logits is None else sample(logits[: len(sampling)], sampling)
        scored = [] if logits is None else score(logits[len(sampling) :], batch.slices)
        failpoint("step.sampled")
        loop.handler.check()  # on CUDA a broken group ends operations early, with garbage: none of it is published
        now = clock()
        loop.handler.step_finished()
        loop.progress.finished(step, started_at, now)
        if loop.pace is not None:
            streams = batch.num_decoding
            loop.pace.stepped(streams, batch.num_tokens - streams, now - started_at)
        # When the last sequences have left nothing is computed, but the pages that they held are free.
        if batch.slices or batch.dropped or arrived or plan.sampled:
            publish(_response(loop, step, batch, sampled, scored, now - started_at if batch.slices else 0.0))


def follow(loop: StepLoop, *, timeout_s: float) -> None:
    """The loop of every other rank: until the leader's plan says stop.

    Args:
        timeout_s: the leader plans or keeps alive more often than this, or it is gone.

    Raises:
        CommunicationError: a rank did not answer, or the group was aborted.
        DivergedError: this rank's scheduler is not in the leader's state.
    """
    step = 0
    plan = shard_worker_pb2.StepPlan()
    while True:
        plan.ParseFromString(loop.channel.receive(timeout_s))
        failpoint("step.planned")
        started_at = time.monotonic()
        loop.handler.step_started()
        step += 1
        if (plan.epoch, plan.step) != (loop.epoch, step):
            raise DivergedError(
                f"expected step {step} of epoch {loop.epoch}, got step {plan.step} of epoch {plan.epoch}"
            )
        if plan.state_hash != loop.scheduler.state_hash():
            raise DivergedError(f"scheduler state of rank {loop.handler.rank} differs at step {step}")
        if plan.stop:
            return
        loop.compute(plan)
        loop.handler.step_finished()
        loop.progress.finished(step, started_at, time.monotonic())


def _going_on(scheduler: Scheduler, sampled: list[Sampled]) -> int:
    """How many streams the next step decodes, if nobody leaves."""
    longest = scheduler.limits.max_model_len
    return sum(
        not result.error and result.sequence.finish_reason(result.token, longest) == UNFINISHED
        for result in sampled
    )


def _response(
    loop: StepLoop,
    step: int,
    batch: Batch,
    sampled: list[Sampled],
    scored: list[Scored],
    duration_s: float,
) -> shard_worker_pb2.ExecuteResponse:
    """One message for all that the step brought. Sequences still lack the new token here."""
    response = shard_worker_pb2.ExecuteResponse(
        epoch=loop.epoch, step=step, stats=loop.scheduler.stats(), step_duration_s=duration_s
    )
    max_model_len = loop.scheduler.limits.max_model_len
    for part in scored:  # before the token that the same step may have sampled: it may be the last
        response.outputs.add(
            sequence_id=part.sequence.sequence_id,
            first_index=part.sequence.num_output,
            prompt_index=part.first,
            prompt_logprobs=part.logprobs,
        )
    for result in sampled:
        sequence = result.sequence
        if result.error:
            response.outputs.add(
                sequence_id=sequence.sequence_id,
                first_index=sequence.num_output,
                finish_reason=sampling_pb2.FINISH_REASON_ERROR,
                error=result.error,
            )
            continue
        response.outputs.add(
            sequence_id=sequence.sequence_id,
            first_index=sequence.num_output,
            token_ids=[result.token],
            logprobs=[] if result.logprobs is None else [result.logprobs],
            finish_reason=sequence.finish_reason(result.token, max_model_len),
            cached_tokens=(sequence.num_cached or 0) if sequence.num_output == sequence.num_replayed else 0,
        )
    for sequence, reason, error in batch.dropped:
        assert reason != UNFINISHED
        response.outputs.add(
            sequence_id=sequence.sequence_id,
            first_index=sequence.num_output,
            finish_reason=reason,
            error=error,
        )
    return response

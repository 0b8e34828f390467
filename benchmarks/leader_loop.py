"""The leader's own loop over a model with random weights, timed apart from the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.batch import Batch
from ryzanstein_shard_worker.communication.single import SingleStepChannel
from ryzanstein_shard_worker.inbox import Inbox
from ryzanstein_shard_worker.kv_cache import BlockAllocator
from ryzanstein_shard_worker.prefill_pace import PrefillPace
from ryzanstein_shard_worker.scheduler import Limits, Scheduler
from ryzanstein_shard_worker.step_loop import Progress, StepLoop, lead

from .engine_model import BLOCK, Bench, random_prompt

MAX_BATCHED_TOKENS = 512

OnStep = Callable[[shard_worker_pb2.ExecuteResponse, Inbox], None]


class TimedRunner:
    """Runs batches and sums up how long the model takes."""

    def __init__(self, bench: Bench, clock: Callable[[], float]) -> None:
        self._bench, self._clock = bench, clock
        self.seconds = 0.0

    def run(self, batch: Batch) -> torch.Tensor:
        begun = self._clock()
        logits = self._bench.runner.run(batch)
        self.seconds += self._clock() - begun
        return logits


class Engine:
    """The leader's loop, again and again over one model; a cache lives as long as one `run`."""

    def __init__(self, bench: Bench, clock: Callable[[], float]) -> None:
        self.bench, self.clock = bench, clock
        self.runner = TimedRunner(bench, clock)
        self._numbers = itertools.count()

    def prompt(self, tokens: int) -> list[int]:
        """One that was never there."""
        return random_prompt(self.bench.config, next(self._numbers), tokens)

    def run(self, inbox: Inbox, on_step: OnStep, *, caching: bool = True, slowdown: float = 0.0) -> None:
        """Until `on_step` stops the inbox."""
        scheduler = Scheduler(
            Limits(64, MAX_BATCHED_TOKENS, self.bench.max_model_len),
            BlockAllocator(self.bench.blocks, BLOCK, prefix_caching=caching),
        )
        pace = PrefillPace(slowdown, MAX_BATCHED_TOKENS) if slowdown else None
        loop = StepLoop(1, self.bench.handler, SingleStepChannel(), scheduler, self.runner, Progress(), pace)
        lead(loop, inbox, lambda response: on_step(response, inbox), keep_alive_s=1.0, clock=self.clock)

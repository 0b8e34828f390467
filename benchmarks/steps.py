"""Where a decoding step of each rank goes: the model, and the time between two of them. No coordinator, no client.

    python -m benchmarks.steps [--ranks 2] [--shape medium] [--streams 1 8 16] [--real-time] [--json FILE]

Every rank is a process on a core of its own, with one thread; they meet in shared memory and run the leader's and the
followers' own loops over random weights. `idle` is from the end of one step's model to the beginning of the next one's:
sampling, the message up, the plan, scheduling. With --real-time (as root) the ranks come before all other programs, so
that a busy machine gives the figures of a quiet one; it is taken from them for as long.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tests.distributed.ranks import SHARED_MEMORY, Rank, Ranks

from ryzanstein.model_plan import kv_head_range, read_model_config
from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.batch import Batch
from ryzanstein_shard_worker.communication import CommunicationProfiler
from ryzanstein_shard_worker.inbox import Inbox
from ryzanstein_shard_worker.kv_cache import BlockAllocator, blocks_for
from ryzanstein_shard_worker.models import Decoder, build_model
from ryzanstein_shard_worker.paged_attention import KVPool
from ryzanstein_shard_worker.runner import Runner
from ryzanstein_shard_worker.scheduler import Limits, Scheduler
from ryzanstein_shard_worker.step_loop import Progress, Publish, StepLoop, follow, lead

from .engine_model import BLOCK, DTYPES, random_prompt, submission
from .shapes import SHAPES, write_config

_WARM_STEPS = 4
_RANDOM_NUMBERS = 1 << 20


@dataclass(frozen=True, slots=True)
class Steps:
    """Medians of one rank, in milliseconds."""

    streams: int
    rank: int
    step_ms: float
    model_ms: float
    idle_ms: float
    #: Of all collectives of a step, waiting for the other ranks included.
    communication_ms: float


class _Watched:
    """Runs batches and keeps when the model began and ended, and the seconds of its collectives."""

    def __init__(self, runner: Runner, handler: CommunicationProfiler) -> None:
        self._runner, self._handler = runner, handler
        self.times: list[tuple[float, float, float]] = []

    def run(self, batch: Batch) -> torch.Tensor:
        begun, before = time.perf_counter(), self._handler.seconds
        logits = self._runner.run(batch)
        self.times.append((begun, time.perf_counter(), self._handler.seconds - before))
        return logits


def measure(
    rank: Rank, directory: str, dtype: str, streams: list[int], context: int, steps: int, real_time: bool
) -> list[Steps]:
    """On one rank, whose group is formed."""
    config, group = read_model_config(Path(directory)), rank.group
    handler = CommunicationProfiler(group.handler)
    model = build_model(
        config, handler, DTYPES[dtype], torch.device("cpu"), max_positions=config.context_length
    )
    _fill(model)
    first, last = kv_head_range(config, group.rank, group.world_size)
    blocks = max(streams) * (blocks_for(context + steps, BLOCK) + 2) + 1
    pool = KVPool(config.num_layers, blocks, last - first, config.head_dim, dtype=DTYPES[dtype])
    pool.data.zero_()
    results = []
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[group.rank]})
    if real_time:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    for count in streams:
        watched = _Watched(Runner(model, pool, cpu_threads=1), handler)
        limits = Limits(count, count * context, config.context_length)
        scheduler = Scheduler(limits, BlockAllocator(blocks, BLOCK))
        loop = StepLoop(1, handler, group.step_channel, scheduler, watched, Progress())
        if group.rank == 0:
            inbox = Inbox()
            for number in range(count):
                prompt = random_prompt(config, number, context)
                inbox.submit(submission(number + 1, prompt, steps + _WARM_STEPS + 1))
            lead(loop, inbox, _stop_after(inbox, steps + _WARM_STEPS), keep_alive_s=1.0)
        else:
            follow(loop, timeout_s=60.0)
        results.append(_medians(count, group.rank, watched.times[_WARM_STEPS:]))
    if real_time:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return results


def _stop_after(inbox: Inbox, steps: int) -> Publish:
    """Takes what each step brought."""
    left = itertools.count(steps - 1, -1)

    def publish(_: shard_worker_pb2.ExecuteResponse) -> None:
        if next(left) == 0:
            inbox.stop()

    return publish


def _medians(streams: int, rank: int, times: list[tuple[float, float, float]]) -> Steps:
    return Steps(
        streams=streams,
        rank=rank,
        step_ms=1e3 * statistics.median(after[0] - before[0] for before, after in itertools.pairwise(times)),
        model_ms=1e3 * statistics.median(end - begin for begin, end, _ in times),
        idle_ms=1e3 * statistics.median(after[0] - before[1] for before, after in itertools.pairwise(times)),
        communication_ms=1e3 * statistics.median(seconds for _, _, seconds in times),
    )


def _fill(model: Decoder) -> None:
    """The same random numbers over and over: new ones would take seconds."""
    numbers = torch.randn(_RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
                continue
            for piece in parameter.view(-1).split(_RANDOM_NUMBERS):
                piece.copy_(numbers[: len(piece)])
    for name, _ in model.layers_in_order():
        model.pack_module(name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="medium")
    parser.add_argument("--model", type=Path, help="a directory whose config.json says the shape instead")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--context", type=int, default=128, help="tokens of each stream")
    parser.add_argument("--steps", type=int, default=40, help="timed ones")
    parser.add_argument("--real-time", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, Ranks(options.ranks) as ranks:
        if options.model is None:
            write_config(Path(made), options.shape)
        agreed = ranks.form(SHARED_MEMORY, timeout_s=60.0, join_timeout_s=60.0)
        if set(agreed) != {"shared_memory"}:
            raise SystemExit(f"the ranks met over {agreed[0]}: build the native library first")
        ranks.start(
            measure,
            str(options.model or made),
            options.dtype,
            options.streams,
            options.context,
            options.steps,
            options.real_time,
        )
        measured = ranks.results(timeout_s=600.0)
    for failed in (result for result in measured if isinstance(result, BaseException)):
        raise failed
    results: list[Steps] = sorted(
        itertools.chain.from_iterable(measured), key=lambda found: (found.streams, found.rank)
    )
    for found in results:
        print(
            f"b{found.streams} rank {found.rank}: step {found.step_ms:.2f} ms "
            f"({1e3 * found.streams / found.step_ms:.1f} tok/s), model {found.model_ms:.2f}, "
            f"idle {found.idle_ms:.2f}, communication {found.communication_ms:.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(found) for found in results], indent=2))


if __name__ == "__main__":
    main()

"""What a cluster does when ten times as much is asked as it can take.

    python -m benchmarks.overload [--model DIR] [--ranks 2] [--front http|grpc] [--times 10] [--seconds 30]
                                  [--logprobs] [--real-time]

Its capacity is what it admits: --max-num-seqs that run and --max-waiting that wait. First so many streams are kept
going, each replaced when it has ended; that gives the rate at which requests end. Then requests come at that rate times
--times, at equal distances, whatever becomes of those before (an open loop): the queue is full in both, so that the
latencies of admitted requests compare. Refused ones don't come back. The bounds: p99 of what is admitted within 1.5
times, refusals under 50 ms, memory as before.

Without --model the model that the coordinator brings is served. The callers are one process beside the cluster and take
their share of the same processors: run it on a quiet machine and believe no single run. What they wait for a processor
themselves is counted as the server's time, unless they have --real-time priority: then they wait for none, as callers
on another machine, and the cluster gets what they leave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from tests.cluster.harness import BUNDLED_MODEL, Cluster

from ryzanstein.measuring.statistics import Spread, spread

from .overload_callers import Asked, Caller, GrpcCaller, HttpCaller
from .probes import coordinator_pid

#: Before anything is measured.
_WARM_S = 3.0


@dataclass(slots=True)
class Phase:
    """What came of one load. Times in seconds."""

    name: str
    seconds: float
    asked: int = 0
    first_token_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    coordinator_mib: float = 0.0

    def take(self, asked: Asked) -> None:
        """One request is over."""
        self.asked += 1
        if asked.failure:
            self.failures.append(asked.failure)
        elif asked.refused_s is not None:
            self.refused_s.append(asked.refused_s)
        elif not asked.moments_s:
            self.failures.append("it ended without a token")
        else:
            self.first_token_s.append(asked.moments_s[0])
            self.gaps_s += [b - a for a, b in zip(asked.moments_s, asked.moments_s[1:], strict=False)]

    @property
    def ended_per_s(self) -> float:
        return len(self.first_token_s) / self.seconds


async def at_capacity(ask: Callable[[], Awaitable[Asked]], streams: int, seconds: float, name: str) -> Phase:
    """So many at a time. What runs at the end is waited for, and counted."""
    phase, until = Phase(name, seconds), time.perf_counter() + seconds

    async def one_after_the_other() -> None:
        while time.perf_counter() < until:
            phase.take(await ask())

    async with asyncio.TaskGroup() as tasks:
        for _ in range(streams):
            tasks.create_task(one_after_the_other())
    return phase


async def overloaded(ask: Callable[[], Awaitable[Asked]], rate_per_s: float, seconds: float) -> Phase:
    """So many a second, whatever becomes of them."""
    phase = Phase(f"{rate_per_s:.0f} requests a second", seconds)

    async def one() -> None:
        phase.take(await ask())

    async with asyncio.TaskGroup() as tasks:
        begun = time.perf_counter()
        for number in range(int(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate_per_s - time.perf_counter()))
            tasks.create_task(one())
    return phase


def report(phase: Phase) -> str:
    """In a few lines."""
    lines = [f"{phase.name}: {phase.asked} asked, {phase.ended_per_s:.1f} ended a second"]
    for what, values in (
        ("first token", phase.first_token_s),
        ("between tokens", phase.gaps_s),
        ("refused after", phase.refused_s),
    ):
        lines.append(f"  {what:15}{_shown(spread(values))}")
    lines.append(f"  coordinator    {phase.coordinator_mib:.0f} MiB afterwards")
    if phase.failures:
        lines.append(f"  FAILED         {len(phase.failures)}, for example {phase.failures[0]}")
    return "\n".join(lines)


def _shown(values: Spread | None) -> str:
    if values is None:
        return "–"
    shown = (f"{name} {getattr(values, name) * 1000:.1f} ms" for name in ("p50", "p99", "max"))
    return f"{', '.join(shown)} ({values.count})"


def ratio(before: list[float], after: list[float], percent: str) -> float:
    """How many times longer. NaN without numbers."""
    first, second = spread(before), spread(after)
    if first is None or second is None:
        return float("nan")
    return float(getattr(second, percent) / getattr(first, percent))


async def measure(cluster: Cluster, options: argparse.Namespace) -> list[Phase]:
    """Both loads, on a cluster that serves."""
    if options.real_time:  # now: the callers' threads are to inherit it, and the cluster not
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    capacity = options.max_num_seqs + options.max_waiting
    address = cluster.grpc if options.front == "grpc" else cluster.http
    caller: Caller = (
        GrpcCaller(address) if options.front == "grpc" else HttpCaller(address, logprobs=options.logprobs)
    )
    coordinator = psutil.Process(coordinator_pid(cluster))
    number = 0

    async def ask() -> Asked:
        nonlocal number
        number += 1
        return await caller.ask(f"{number} " + "word " * options.prompt_words, options.output_tokens)

    try:
        await at_capacity(ask, capacity, _WARM_S, "warm")
        phases = [await at_capacity(ask, capacity, options.seconds, f"{capacity} at a time, its capacity")]
        phases[0].coordinator_mib = coordinator.memory_info().rss / 2**20
        phases.append(await overloaded(ask, phases[0].ended_per_s * options.times, options.seconds))
        phases[1].coordinator_mib = coordinator.memory_info().rss / 2**20
    finally:
        await caller.close()
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--front", choices=["http", "grpc"], default="http")
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--max-num-seqs", type=int, default=8)
    parser.add_argument("--max-waiting", type=int, default=8)
    parser.add_argument("--prompt-words", type=int, default=100)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument(
        "--logprobs",
        action="store_true",
        help="over HTTP ask for them: tokens that are no text of the model's are sent only so",
    )
    parser.add_argument(
        "--real-time", action="store_true", help="priority of the callers; needs the right to it"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; over {options.front}")
    flags = ["--max-num-seqs", str(options.max_num_seqs), "--max-waiting-requests", str(options.max_waiting)]
    flags += ["--cpu-threads", "1"]
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster(Path(directory), options.model, *flags, tensor_parallel_size=options.ranks) as cluster,
    ):
        cluster.ready(180)
        calm, flood = asyncio.run(measure(cluster, options))
        status, reason = cluster.get("/health")
    print(report(calm))
    print(report(flood))
    print(
        f"p99 of admitted requests: first token {ratio(calm.first_token_s, flood.first_token_s, 'p99'):.2f} times, "
        f"between tokens {ratio(calm.gaps_s, flood.gaps_s, 'p99'):.2f} times (p50: "
        f"{ratio(calm.first_token_s, flood.first_token_s, 'p50'):.2f}, {ratio(calm.gaps_s, flood.gaps_s, 'p50'):.2f}); "
        f"/health {status} {reason}"
    )
    if options.json:
        options.json.write_text(json.dumps([asdict(calm), asdict(flood)]))


if __name__ == "__main__":
    main()

"""What the scheduler is worth on one rank: the prefix cache, and how evenly streams flow while prompts arrive.

    python -m benchmarks.scheduling [--shape medium] [--clock cpu] [--slowdowns 0 1.7] [--json FILE]

The leader's own loop runs over a model with random weights, on one thread, without a coordinator. Four questions:

  * next turn: until the first token of a chat's second turn, with its history in the cache and without.
  * nothing shared: the cost of looking prompts up and keeping their blocks when none is ever found again.
  * flow: 8 streams decode, and whenever a prompt of 512 tokens has got its first token, the next one arrives some steps
    later. A stream's time between two tokens is one step.
  * host: the share of a step at 16 streams that isn't the model.

`--clock cpu` counts the thread's processor time: for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ryzanstein.model_plan import read_model_config
from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.inbox import Inbox

from .engine_model import Bench, submission
from .leader_loop import Engine
from .shapes import SHAPES, write_config

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.monotonic, "cpu": time.thread_time}
STREAMS, ARRIVING = 8, 512
HISTORY, NEW = 1000, 24


@dataclass(frozen=True, slots=True)
class NextTurn:
    """Seconds to the first token of a prompt of `history_tokens` and some more."""

    history_tokens: int
    cached_s: float
    computed_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class NothingShared:
    """Seconds of the same work."""

    caching_s: float
    plain_s: float


@dataclass(frozen=True, slots=True)
class Flow:
    """Seconds between two tokens of a stream: alone, and while prompts arrive."""

    slowdown: float
    undisturbed_s: float
    median_s: float
    p99_s: float
    worst_s: float
    #: Of the prompts that arrived.
    first_token_s: float


@dataclass(frozen=True, slots=True)
class Host:
    """One step of 16 streams: all of it, and without the model."""

    step_s: float
    host_s: float


def measure_next_turn(engine: Engine, repeats: int) -> NextTurn:
    """With the cache and without in turn, so that a slow minute hits both."""
    runs = [(caching, _next_turn(engine, caching)) for caching in (True, False) * repeats]
    cached, computed = (
        statistics.median(seconds for caching, (seconds, _) in runs if caching is which)
        for which in (True, False)
    )
    return NextTurn(HISTORY, cached, computed, max(found for _, (_, found) in runs))


def _next_turn(engine: Engine, caching: bool) -> tuple[float, int]:
    """Seconds to the first token of the second turn, and the tokens that were found."""
    first, output = engine.prompt(HISTORY - 100), list[int]()
    seconds, found = 0.0, 0

    def on_step(response: shard_worker_pb2.ExecuteResponse, inbox: Inbox) -> None:
        nonlocal seconds, found
        seconds += response.step_duration_s
        for out in response.outputs:
            if out.sequence_id == 2:
                found = out.cached_tokens
                inbox.stop()
                continue
            output.extend(out.token_ids)
            if out.finish_reason:
                seconds = 0.0
                inbox.submit(submission(2, [*first, *output, *engine.prompt(NEW)], 1))

    inbox = Inbox()
    inbox.submit(submission(1, first, 100))
    engine.run(inbox, on_step, caching=caching)
    return seconds, found


def measure_nothing_shared(engine: Engine, repeats: int) -> NothingShared:
    """With the cache and without in turn."""
    runs = [(caching, _nothing_shared(engine, caching)) for caching in (True, False) * repeats]
    cached, plain = (
        statistics.median(seconds for caching, seconds in runs if caching is which) for which in (True, False)
    )
    return NothingShared(cached, plain)


def _nothing_shared(engine: Engine, caching: bool) -> float:
    """Seconds of 16 requests of 128 tokens and 32 more, 8 at a time."""
    numbers = iter(range(1, 17))
    seconds, running = 0.0, 0

    def submit_next() -> int:
        number = next(numbers, None)
        if number is not None:
            inbox.submit(submission(number, engine.prompt(128), 32))
        return number is not None

    def on_step(response: shard_worker_pb2.ExecuteResponse, inbox: Inbox) -> None:
        nonlocal seconds, running
        seconds += response.step_duration_s
        for _ in (out for out in response.outputs if out.finish_reason):
            running += submit_next() - 1
        if not running:
            inbox.stop()

    inbox = Inbox()
    running = sum(submit_next() for _ in range(STREAMS))
    engine.run(inbox, on_step, caching=caching)
    return seconds


def measure_flow(engine: Engine, slowdown: float, prompts: int, pause: int) -> Flow:
    """`prompts` arrive, each `pause` steps after the first token of the one before."""
    undisturbed: list[float] = []
    disturbed: list[float] = []
    firsts: list[float] = []
    waited, due = [0.0], [30]

    def on_step(response: shard_worker_pb2.ExecuteResponse, inbox: Inbox) -> None:
        ids = [out.sequence_id for out in response.outputs if out.token_ids]
        if any(number <= STREAMS for number in ids):
            (disturbed if firsts or due[0] <= 0 else undisturbed).append(response.step_duration_s)
        waited[0] += response.step_duration_s
        if any(number > STREAMS for number in ids):
            firsts.append(waited[0])
            due[0] = pause
            if len(firsts) == prompts:
                inbox.stop()
        due[0] -= 1
        if due[0] == 0:
            waited[0] = 0.0
            inbox.submit(submission(STREAMS + 1 + len(firsts), engine.prompt(ARRIVING), 1))

    inbox = Inbox()
    for number in range(STREAMS):
        inbox.submit(submission(number + 1, engine.prompt(128), 100_000))
    engine.run(inbox, on_step, slowdown=slowdown)
    alone = undisturbed[5:]  # the first ones prefill
    ordered = sorted(disturbed)
    return Flow(
        slowdown,
        statistics.median(alone),
        statistics.median(ordered),
        ordered[int(0.99 * (len(ordered) - 1))],
        ordered[-1],
        statistics.median(firsts),
    )


def measure_host(engine: Engine, steps: int) -> Host:
    times: list[tuple[float, float]] = []

    def on_step(response: shard_worker_pb2.ExecuteResponse, inbox: Inbox) -> None:
        times.append((response.step_duration_s, engine.runner.seconds))
        engine.runner.seconds = 0.0
        if len(times) == steps:
            inbox.stop()

    inbox = Inbox()
    for number in range(16):
        inbox.submit(submission(number + 1, engine.prompt(32), 100_000))
    engine.runner.seconds = 0.0
    engine.run(inbox, on_step)
    decoding = times[steps // 4 :]
    step_s = statistics.median(step for step, _ in decoding)
    return Host(step_s, step_s - statistics.median(model for _, model in decoding))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="medium")
    parser.add_argument("--model", type=Path, help="a directory whose config.json says the shape instead")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slowdowns", type=float, nargs="*", default=[0.0, 1.7], help="0: no bound")
    parser.add_argument("--prompts", type=int, default=12, help="that arrive beside the streams")
    parser.add_argument("--pause", type=int, default=10, help="steps between two of them")
    parser.add_argument("--only", choices=["next-turn", "nothing-shared", "flow", "host"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        config = (
            read_model_config(options.model)
            if options.model
            else write_config(Path(directory), options.shape)
        )
    bench = Bench(config, options.dtype, torch.device("cpu"), 16384)
    engine = Engine(bench, CLOCKS[options.clock])
    results: list[NextTurn | NothingShared | Flow | Host] = []

    def wanted(name: str) -> bool:
        return options.only in (None, name)

    if wanted("next-turn"):
        turn = measure_next_turn(engine, options.repeats)
        results.append(turn)
        print(
            f"second turn behind {turn.history_tokens} tokens: {turn.cached_s * 1e3:.0f} ms with the cache "
            f"({turn.cached_tokens} tokens found), {turn.computed_s * 1e3:.0f} ms without, "
            f"{turn.computed_s / turn.cached_s:.1f} times",
            flush=True,
        )
    if wanted("nothing-shared"):
        shared = measure_nothing_shared(engine, options.repeats)
        results.append(shared)
        print(
            f"nothing shared: {shared.caching_s:.3f} s with the cache, {shared.plain_s:.3f} s without, "
            f"{shared.caching_s / shared.plain_s - 1:+.2%}",
            flush=True,
        )
    if wanted("flow"):
        for slowdown in options.slowdowns:
            flow = measure_flow(engine, slowdown, options.prompts, options.pause)
            results.append(flow)
            print(
                f"flow at {slowdown}: {flow.undisturbed_s * 1e3:.1f} ms a token alone; while prompts arrive "
                f"median {flow.median_s * 1e3:.1f}, p99 {flow.p99_s * 1e3:.1f}, worst {flow.worst_s * 1e3:.1f} ms; "
                f"p99 is {flow.p99_s / flow.median_s:.2f} medians, {flow.p99_s / flow.undisturbed_s:.2f} alone; "
                f"first token of a prompt after {flow.first_token_s * 1e3:.0f} ms",
                flush=True,
            )
    if wanted("host"):
        host = measure_host(engine, 200)
        results.append(host)
        print(
            f"a step of 16 streams: {host.step_s * 1e3:.3f} ms, without the model {host.host_s * 1e3:.3f} ms, "
            f"{host.host_s / host.step_s:.1%}"
        )
    if options.json:
        named = [{"of": type(result).__name__, **asdict(result)} for result in results]
        options.json.write_text(json.dumps(named, indent=2))


if __name__ == "__main__":
    main()

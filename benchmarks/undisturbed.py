"""What it costs, while nothing fails, that nothing is lost: leases and watches, the test for NaN, the request log.

    python -m benchmarks.undisturbed [--model DIR] [--streams 8] [--idle-s 20]

Without --model the model `medium` of `benchmarks.models` is used. Three costs are measured one by one, because their
sum is smaller than what two runs of the same cluster differ by:

  * watching: processor time of a cluster that serves and has no request, so all of it goes to heartbeats, leases,
    keep-alives and the looks at devices. The thread that computes is left out: waiting for work is no cost while there
    is work. A worker's share is taken from its engine, the coordinator's from all of them.
  * the test of every reduction for NaN and infinity: its time at the shape of a step, times the reductions of a step,
    against the time of that step in the running cluster.
  * the request log: from handing a request over to its being on disk, against the time of a stream of 128 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from array import array
from pathlib import Path

import psutil
import torch
from tests.cluster.harness import Cluster

from ryzanstein.model_plan import read_model_config
from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein_client import Client
from ryzanstein_coordinator.request_log import SqliteRequestLog
from ryzanstein_coordinator.requests import RequestSpec
from ryzanstein_shard_worker.communication.finite import holds_non_finite

from .models import make_medium
from .probes import coordinator_pid, leader_steps

RANKS, PROMPT, OUTPUT = 2, 128, 128


def thread_seconds(pids: dict[str, int]) -> dict[tuple[str, int], float]:
    """Processor time so far, by process and thread."""
    return {
        (name, thread.id): thread.user_time + thread.system_time
        for name, pid in pids.items()
        for thread in psutil.Process(pid).threads()
    }


def watching_share(pids: dict[str, int], engines: set[tuple[str, int]], seconds: float) -> dict[str, float]:
    """Of one core, by process, without the engines' threads, over a time in which nothing is asked of them."""
    before, begun = thread_seconds(pids), time.monotonic()
    time.sleep(seconds)
    after, passed = thread_seconds(pids), time.monotonic() - begun
    return {
        name: sum(after[key] - before.get(key, 0.0) for key in after if key[0] == name and key not in engines)
        / passed
        for name in pids
    }


def step_seconds(cluster: Cluster, streams: int, vocab_size: int) -> float:
    """A step of decoding with so many streams, as the leader counts it."""
    span: list[tuple[float, float]] = []
    with Client(cluster.grpc) as client:

        def run(number: int) -> None:
            prompt = [5 + (7 * number + i) % (vocab_size - 5) for i in range(PROMPT)]
            client.generate(prompt, max_tokens=OUTPUT, temperature=0.0, ignore_eos=True)

        run(0)
        threads = [threading.Thread(target=run, args=(number,)) for number in range(streams)]
        for thread in threads:
            thread.start()
        while cluster.snapshot()["requests"]["running"] < streams:
            time.sleep(0.01)
        time.sleep(1.0)  # prompts are prefilled
        span.append(leader_steps(cluster))
        time.sleep(1.0)
        span.append(leader_steps(cluster))
        for thread in threads:
            thread.join()
    (seconds_before, steps_before), (seconds, steps) = span
    return (seconds - seconds_before) / (steps - steps_before)


def test_seconds(rows: int, hidden: int, dtype: torch.dtype) -> float:
    """One look for NaN and infinity at what a layer has summed up."""
    summed = torch.randn(rows, hidden).to(dtype)
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        for _ in range(50):
            holds_non_finite(summed)
        times.append((time.perf_counter() - begun) / 50)
    return statistics.median(times)


async def log_seconds(directory: Path, requests: int = 200) -> float:
    """From handing a request over to its being on disk, one after the other: the median."""
    log = SqliteRequestLog(directory / "requests.sqlite", fingerprint="benchmark")
    times = []
    for number in range(requests):
        spec = RequestSpec(
            owner="",
            request_id=f"r{number}",
            model="m",
            prompt=array("i", range(PROMPT)),
            sampling=SamplingParams(max_tokens=OUTPUT),
        )
        begun = time.perf_counter()
        await log.admitted(spec, None)
        times.append(time.perf_counter() - begun)
    await log.close()
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--idle-s", type=float, default=20.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ryzanstein-benchmarks")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.model or make_medium(options.work / "medium")
    config = read_model_config(model)
    flags = ("--cpu-threads", "1", "--dtype", "bfloat16", "--max-num-seqs", str(options.streams))
    with Cluster(options.work / "state-undisturbed", model, *flags, tensor_parallel_size=RANKS) as cluster:
        cluster.ready(180)
        workers = {worker["id"]: worker["pid"] for worker in cluster.workers()}
        pids = {**workers, "coordinator": coordinator_pid(cluster)}
        before = thread_seconds(pids)
        step_s = step_seconds(cluster, options.streams, config.vocab_size)
        used = {key: seconds - before.get(key, 0.0) for key, seconds in thread_seconds(pids).items()}
        engines = {max((key for key in used if key[0] == name), key=used.__getitem__) for name in workers}
        time.sleep(2.0)
        shares = watching_share(pids, engines, options.idle_s)
        cluster.terminate(60)
    watching = max(shares[name] for name in workers) + shares["coordinator"] / RANKS
    print("watching, of one core:", ", ".join(f"{name} {share:.2%}" for name, share in shares.items()))

    sums = 2 * config.num_layers + 1
    one_s = test_seconds(options.streams, config.hidden_size, torch.bfloat16)
    testing = sums * one_s / step_s
    print(
        f"NaN test: {sums} times {one_s * 1e6:.1f} us in a step of {step_s * 1e3:.1f} ms with {options.streams} "
        f"streams: {testing:.2%}"
    )
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        one_s = asyncio.run(log_seconds(Path(directory)))
    logging = one_s / (OUTPUT * step_s)
    print(f"request log: {one_s * 1e3:.2f} ms for each request, {logging:.2%} of a stream of {OUTPUT} tokens")
    print(f"together at most {watching + testing + logging:.2%}")


if __name__ == "__main__":
    main()

"""A model through the whole cluster on this machine: client, coordinator, shard workers.

    python -m benchmarks.cluster [--device cuda] [--model DIR] [--ranks 1 2] [--streams 1 8 16]
        [--quantization int8] [--json FILE]

Without --model the model `medium` of `benchmarks.models` is made below --work. On CPUs every rank gets one core, on
GPUs one GPU. Greedy, end of sequence ignored, prompt 128 and output 128 tokens; the first token is measured with a
prompt of 512. Tokens per second count while decoding: from the first token of the last stream that began to the
first end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import psutil
from tests.cluster.harness import Cluster

from ryzanstein.model_plan import QUANTIZATIONS, UNQUANTIZED, kv_bytes_per_token, read_model_config
from ryzanstein.v1.operations_pb2 import PlanMemoryRequest
from ryzanstein.v1.operations_pb2_grpc import OperationsServiceStub
from ryzanstein_client import AsyncClient, Client, SamplingParams
from ryzanstein_client.bench.fronts import GrpcFront
from ryzanstein_client.bench.lengths import parse_length
from ryzanstein_client.bench.phases import at_once
from ryzanstein_client.bench.scaling import ScalingWork
from ryzanstein_client.bench.scaling import measure as measure_phases
from ryzanstein_client.bench.workload import synthetic

from .models import make_medium
from .probes import leader_steps

PROMPT, OUTPUT, LONG_PROMPT = 128, 128, 512
BLOCK = 16
#: Streams that fill the whole KV cache, and how far each goes on, so that the peak of memory is a full one.
FULL, FILL_OUTPUT = 16, 16


@dataclass(frozen=True)
class Result:
    """One cluster. Times in seconds, memory in bytes."""

    ranks: int
    quantization: str
    start_s: float
    first_token_s: float
    #: Streams at once → tokens per second of all of them.
    decode: dict[int, float]
    #: Share of a stream's time per token that is not the leader's step: gRPC twice, records, text.
    rpc_share: float
    #: Of each rank: what the ledger said, and the highest that the process held.
    ledger_bytes: list[int]
    peak_bytes: list[int]


def measure(
    model: Path,
    ranks: int,
    streams: list[int],
    repeats: int,
    work: Path,
    device: str = "cpu",
    quantization: str = UNQUANTIZED,
) -> Result:
    """Starts a cluster, measures, stops it."""
    begun = time.monotonic()
    config = read_model_config(model)
    filled = (
        FULL * -(-(LONG_PROMPT + FILL_OUTPUT) // BLOCK) + 1
    )  # blocks that `_fill` uses, and the scratch block
    cache = filled * BLOCK * kv_bytes_per_token(config, ranks)
    flags = (
        "--max-model-len",
        "1024",
        "--max-num-seqs",
        str(FULL),
        "--cpu-threads",
        "1",
        "--kv-cache-memory",
        str(cache),
        "--device",
        device,
        "--quantization",
        quantization,
    )
    with Cluster(work / f"state-{ranks}", model, *flags, tensor_parallel_size=ranks) as cluster:
        cluster.ready(180)
        start_s = time.monotonic() - begun
        first_token_s, decode = asyncio.run(_phases(cluster.grpc, streams, repeats, config.vocab_size))
        with Client(cluster.grpc) as client:
            draw = random.Random(0)
            rpc_share = _rpc_share(
                cluster, client, [draw.randrange(5, config.vocab_size) for _ in range(PROMPT)]
            )
        ledger, peak = _memory(cluster)
        cluster.terminate(60)
    return Result(ranks, quantization, start_s, first_token_s, decode, rpc_share, ledger, peak)


async def _phases(
    address: str, streams: list[int], repeats: int, vocab_size: int
) -> tuple[float, dict[int, float]]:
    """→ seconds to the first token of a long prompt, and tokens per second by number of streams. Fills the cache, too,
    so that the peak of memory is a full one."""
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    front = GrpcFront(AsyncClient(address), model=None, sampling=sampling, timeout_s=3600.0)
    work = ScalingWork(LONG_PROMPT, PROMPT, OUTPUT, tuple(streams), repeats)
    try:
        first_token_s, rates = await measure_phases(front, work, lambda _: None)
        ids = range(5, vocab_size)
        long = synthetic(ids, parse_length(str(LONG_PROMPT)), parse_length(str(FILL_OUTPUT)), seed=0)
        await at_once(front, long, FULL)
    finally:
        await front.aclose()
    return first_token_s, {count: rates[f"b{count}"] for count in streams}


def _stream(client: Client, prompt: list[int]) -> list[float]:
    """The moment of every token."""
    moments: list[float] = []
    for chunk in client.stream(prompt, max_tokens=OUTPUT, temperature=0.0, ignore_eos=True):
        moments += [time.perf_counter()] * len(chunk.token_ids)
    return moments


def _rpc_share(cluster: Cluster, client: Client, prompt: list[int]) -> float:
    """One stream's time per token at the client against the leader's time per step for the same tokens."""
    before = leader_steps(cluster)
    moments = _stream(client, prompt)
    after = leader_steps(cluster)
    per_step = (after[0] - before[0]) / (after[1] - before[1])
    per_token = (moments[-1] - moments[0]) / (len(moments) - 1)
    return max(0.0, 1.0 - per_step / per_token)


def _memory(cluster: Cluster) -> tuple[list[int], list[int]]:
    """The ledger of each rank without its reserve, and the highest resident memory of its process."""
    workers = cluster.workers()
    with grpc.insecure_channel(cluster.grpc) as channel:
        plan = OperationsServiceStub(channel).PlanMemory(PlanMemoryRequest())
    # A GPU's worker says what torch reserved there; the runtime (context, kernels) lies outside of it.
    left_out = {"reserve"} if workers[0]["device"] == "cpu" else {"reserve", "runtime"}
    ledger = [sum(part.bytes for part in rank.components if part.name not in left_out) for rank in plan.ranks]
    peak = []
    for worker in workers:
        if worker["device"] != "cpu":
            # torch's allocator gives nothing back by itself: what it holds now is its peak.
            peak.append(int(worker["memory"]["used_bytes"]))
            continue
        status = Path(f"/proc/{worker['pid']}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        peak.append(int(line.split()[1]) * 1024)
    return ledger, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default=UNQUANTIZED)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ryzanstein-benchmarks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model = options.model or make_medium(options.work / "medium")
    print(
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    )
    results = []
    for ranks in options.ranks:
        result = measure(
            model,
            ranks,
            options.streams,
            options.repeats,
            options.work,
            options.device,
            options.quantization,
        )
        results.append(result)
        print(
            f"ranks {ranks}: start {result.start_s:.1f} s, first token {result.first_token_s * 1000:.0f} ms, "
            + ", ".join(f"b{count} {rate:.1f} tok/s" for count, rate in result.decode.items())
            + f", rpc {result.rpc_share:.1%}"
        )
        for rank, (planned, peak) in enumerate(zip(result.ledger_bytes, result.peak_bytes, strict=False)):
            print(
                f"  rank {rank}: ledger {planned / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB, {planned / peak:.2f}"
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


if __name__ == "__main__":
    main()

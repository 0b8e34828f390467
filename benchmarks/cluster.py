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
import json
import os
import random
import statistics
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import psutil
from tests.cluster.harness import Cluster

from ryzanstein.model_plan import QUANTIZATIONS, UNQUANTIZED, kv_bytes_per_token, read_model_config
from ryzanstein.v1.operations_pb2 import PlanMemoryRequest
from ryzanstein.v1.operations_pb2_grpc import OperationsServiceStub
from ryzanstein_client import Client

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
        with Client(cluster.grpc) as client:
            draw = random.Random(0)

            def prompt(length: int) -> list[int]:
                return [draw.randrange(5, config.vocab_size) for _ in range(length)]

            _stream(client, prompt(PROMPT), 8)  # warm
            first = [_stream(client, prompt(LONG_PROMPT), 2)[0] for _ in range(repeats)]
            decode = {
                count: statistics.median(
                    _crowd(client, [prompt(PROMPT) for _ in range(count)]) for _ in range(repeats)
                )
                for count in streams
            }
            rpc_share = _rpc_share(cluster, client, prompt(PROMPT))
            _crowd(client, [prompt(LONG_PROMPT) for _ in range(FULL)], FILL_OUTPUT)
        ledger, peak = _memory(cluster)
        cluster.terminate(60)
    return Result(ranks, quantization, start_s, statistics.median(first), decode, rpc_share, ledger, peak)


def _stream(client: Client, prompt: list[int], count: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and the moment of every token."""
    begun = time.perf_counter()
    moments: list[float] = []
    for chunk in client.stream(prompt, max_tokens=count, temperature=0.0, ignore_eos=True):
        moments += [time.perf_counter()] * len(chunk.token_ids)
    return moments[0] - begun, moments


def _crowd(client: Client, prompts: list[list[int]], count: int = OUTPUT) -> float:
    """Tokens per second while all streams decode."""
    moments: list[list[float]] = [[] for _ in prompts]

    def run(number: int) -> None:
        moments[number] = _stream(client, prompts[number], count)[1]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    begin, end = max(m[0] for m in moments), min(m[-1] for m in moments)
    return sum(begin < moment <= end for stream in moments for moment in stream) / (end - begin)


def _rpc_share(cluster: Cluster, client: Client, prompt: list[int]) -> float:
    """One stream's time per token at the client against the leader's time per step for the same tokens."""
    before = leader_steps(cluster)
    _, moments = _stream(client, prompt, OUTPUT)
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

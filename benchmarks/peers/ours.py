"""Ryzanstein as one of the engines: through the whole cluster, by the client library."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

from tests.cluster.harness import Cluster

from ryzanstein_client import Client

from .measure import Figures, Plan, measure


class Streams:
    """One client; every stream has a thread that reads it."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def generate(self, prompts: list[list[int]], output_tokens: int) -> list[list[float]]:
        moments: list[list[float]] = [[] for _ in prompts]
        failures: list[Exception] = []

        def run(number: int) -> None:
            moments[number].append(time.perf_counter())
            try:
                for chunk in self._client.stream(
                    prompts[number], max_tokens=output_tokens, temperature=0.0, ignore_eos=True
                ):
                    moments[number] += [time.perf_counter()] * len(chunk.token_ids)
            except Exception as failure:  # noqa: BLE001  told by the thread that waits
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return moments


def one_round(model: Path, weights: str, ranks: int, plan: Plan, work: Path) -> Figures:
    """Starts a cluster with one core per rank, measures, stops it. The start counts from the command to ready."""
    state = work / f"state-peers-{ranks}"
    shutil.rmtree(state, ignore_errors=True)
    flags = ["--cpu-threads", "1", "--max-model-len", "1024", "--max-num-seqs", str(max(plan.streams))]
    flags += (
        ["--dtype", "bfloat16"] if weights == "bf16" else ["--dtype", "bfloat16", "--quantization", weights]
    )
    begun = time.monotonic()
    with Cluster(state, model, *flags, tensor_parallel_size=ranks) as cluster:
        cluster.ready(180)
        start_s = time.monotonic() - begun
        with Client(cluster.grpc) as client:
            figures = measure(Streams(client), plan, start_s)
        cluster.terminate(60)
    return figures

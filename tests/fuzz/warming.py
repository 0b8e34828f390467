"""Uses all of the KV cache once: its pages are the system's until they are first written, and would count as growth."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import grpc

from ryzanstein.v1 import operations_pb2, operations_pb2_grpc
from ryzanstein.wire import CHANNEL_OPTIONS
from ryzanstein_client import Client
from ryzanstein_coordinator.config import BLOCK_SIZE

from ..cluster.harness import Cluster

#: Prompts at a time, so that each step has enough of them to be full.
_AT_ONCE = 8


def touch_cache(cluster: Cluster) -> int:
    """Asks for a token each of so many prompts that no two share a page and all pages are used. → tokens read.

    What a prompt leaves stays in the prefix cache as long as any page was never used.
    """
    capacity = _capacity_tokens(cluster)
    length = int(cluster.snapshot()["model"]["max_model_len"]) - 1
    rng = random.Random(0)
    # One more than fit. What is left of a page at the end of each is used again by the next.
    kept = length // BLOCK_SIZE * BLOCK_SIZE
    prompts = [[rng.randrange(70, 90) for _ in range(length)] for _ in range(capacity // kept + 1)]
    with Client(cluster.grpc) as client, ThreadPoolExecutor(_AT_ONCE) as threads:
        answers = threads.map(lambda prompt: client.generate(prompt, max_tokens=1, temperature=0.0), prompts)
        assert all(answer.finish_reason for answer in answers)
    return length * len(prompts)


def _capacity_tokens(cluster: Cluster) -> int:
    """Of the group's cache, by the ledger's bytes per token."""
    ranks = cluster.workers()
    asked = operations_pb2.PlanMemoryRequest(
        tensor_parallel_size=len(ranks), device_bytes=2**34, memory_utilization=0.9
    )
    with grpc.insecure_channel(cluster.grpc, options=CHANNEL_OPTIONS) as channel:
        plan = operations_pb2_grpc.OperationsServiceStub(channel).PlanMemory(asked, timeout=10.0)
    return int(ranks[0]["memory"]["kv_cache_bytes"]) // int(plan.kv_bytes_per_token)

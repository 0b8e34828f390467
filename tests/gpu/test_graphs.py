"""Captured steps give the tokens of steps that are launched one by one and of the CPU, and go with their epoch."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from ryzanstein_shard_worker.communication import CommunicationHandler, RebindableHandler, SingleHandler
from ryzanstein_shard_worker.communication.nccl import NcclHandler
from ryzanstein_shard_worker.communication.nccl_group import form_nccl_group
from ryzanstein_shard_worker.gpu.graph_driver import CudaGraphDriver
from ryzanstein_shard_worker.paged_attention import KVPool
from ryzanstein_shard_worker.runner import Runner
from ryzanstein_shard_worker.shard import DTYPES
from ryzanstein_shard_worker.step_device import StepDevice, step_device
from tests.unit.gpu.steps import BLOCKS, BUNDLED, LENGTH, Shard, generate

from .loading import load_on

PROMPTS = [[1, 5, 9, 30], [1, 7], [1, 40, 41, 42, 43, 44, 45], [1, 100, 3]]
COUNT = 24


def on_gpu(
    device: torch.device, handler: CommunicationHandler, sizes: tuple[int, ...], dtype: str = "float32"
) -> tuple[Runner, StepDevice]:
    """The bundled model, as an engine has it."""
    model = load_on(device, BUNDLED, DTYPES[dtype], handler)
    config = model.config
    pool = KVPool(
        config.num_layers, BLOCKS, config.num_kv_heads, config.head_dim, dtype=DTYPES[dtype], device=device
    )
    launching = step_device(model, pool, sizes, max_model_len=LENGTH, reproducible=False)
    assert launching is not None
    runner = Runner(model, pool, cpu_threads=1, device=launching)
    runner.warm_up(64)
    return runner, launching


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    handler = SingleHandler()
    return generate(handler, Shard(handler, None).runner, PROMPTS, COUNT)


def test_float32_tokens_are_those_of_the_cpu_with_graphs_and_without(
    cuda: torch.device, expected: list[list[int]], record_property: Callable[[str, object], None]
) -> None:
    handler = SingleHandler()
    runner, launching = on_gpu(cuda, handler, (1, 2, 4, 8))
    assert launching.graphs is not None
    assert generate(handler, runner, PROMPTS, COUNT) == expected
    runner.enter(handler)
    assert launching.graphs.captured == (8, 4, 2, 1)
    record_property("capture_s", round(launching.graphs.capture_s, 3))
    assert generate(handler, runner, PROMPTS, COUNT) == expected
    assert handler.last.operation == "replay"


def test_bfloat16_tokens_are_the_same_with_graphs_and_without_for_a_while(cuda: torch.device) -> None:
    """A padded batch may round otherwise, so only the first tokens are held to be equal."""
    handler = SingleHandler()
    runner, _ = on_gpu(cuda, handler, (4,), "bfloat16")
    eager = generate(handler, runner, PROMPTS, COUNT)
    runner.enter(handler)
    captured = generate(handler, runner, PROMPTS, COUNT)
    assert [tokens[:3] for tokens in captured] == [tokens[:3] for tokens in eager]


def nccl(device: torch.device) -> NcclHandler:
    return form_nccl_group(
        HashStore(), rank=0, world_size=1, device=device, timeout_s=10.0, reproducible=False
    )


def test_graphs_that_hold_a_communicator_do_not_hold_up_its_abort(cuda: torch.device) -> None:
    """Three epochs in one process: capture, replay, give up, abort, form again."""
    layers = RebindableHandler(0, 1)
    driver = CudaGraphDriver(cuda)
    given = torch.arange(64, dtype=torch.float32, device=cuda)
    for epoch in range(3):
        handler = nccl(cuda)
        layers.bind(handler)
        assert layers.graphs == "bound"
        layers.all_reduce(given.clone())

        def step() -> torch.Tensor:
            layers.capturing()
            return layers.all_reduce(2 * given)

        graph = driver.capture(step)
        mark = layers.captured()
        graph.replay()
        layers.replayed(mark)
        layers.settle()
        torch.cuda.synchronize()
        layers.check()
        assert torch.equal(graph.output, 2 * given), epoch
        graph.release()
        layers.unbind()
        started_at = time.monotonic()
        handler.abort("a rank died")
        handler.close()
        assert time.monotonic() - started_at < 1.0

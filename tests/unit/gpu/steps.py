"""A small model's steps as a GPU launches them, on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

import ryzanstein_coordinator
from ryzanstein.model_plan import ModelConfig, open_checkpoint, read_model_config
from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.gpu.attention import ModelAttention
from ryzanstein_shard_worker.gpu.decode_graphs import DecodeGraphs
from ryzanstein_shard_worker.gpu.graph_driver import GraphDriver, RepeatingDriver
from ryzanstein_shard_worker.gpu.paged_gathered import GatheredAttention
from ryzanstein_shard_worker.gpu.staging import Staging
from ryzanstein_shard_worker.kv_cache import BlockAllocator
from ryzanstein_shard_worker.models import Decoder, build_model
from ryzanstein_shard_worker.paged_attention import KVPool
from ryzanstein_shard_worker.runner import Runner
from ryzanstein_shard_worker.sampling import sample
from ryzanstein_shard_worker.scheduler import Limits, Scheduler
from ryzanstein_shard_worker.step_device import StepDevice
from tests.unit.engine.sequences import submission

BUNDLED = Path(ryzanstein_coordinator.__file__).parent / "bundled_model"
CPU = torch.device("cpu")
BLOCKS, LENGTH, PATIENCE = 20, 64, 4


def load(handler: CommunicationHandler) -> tuple[ModelConfig, Decoder]:
    """The bundled model's part of this rank, float32."""
    config = read_model_config(BUNDLED)
    model = build_model(config, handler, torch.float32, CPU, max_positions=LENGTH)
    DistributedCheckpointLoader(
        open_checkpoint(BUNDLED), config, handler.rank, handler.world_size, torch.float32, CPU
    ).load(model)
    return config, model


class Shard:
    """One rank's model and pages, with steps launched as on a GPU unless `sizes` is None."""

    def __init__(
        self,
        handler: CommunicationHandler,
        sizes: tuple[int, ...] | None,
        driver: GraphDriver | None = None,
    ) -> None:
        config, self.model = load(handler)
        kv_heads = max(1, config.num_kv_heads // handler.world_size)
        self.pool = KVPool(config.num_layers, BLOCKS, kv_heads, config.head_dim, kernel=None)
        self.pool.data.fill_(float("nan"))
        self.device = None
        if sizes is not None:
            attention = GatheredAttention(
                self.pool,
                ModelAttention(
                    self.model.query_heads, self.model.sliding_windows, self.model.attention_scale, False
                ),
            )
            graphs = DecodeGraphs(
                self.model,
                self.pool,
                attention,
                driver or RepeatingDriver(),
                sizes=sizes,
                max_model_len=LENGTH,
                patience=PATIENCE,
            )
            self.device = StepDevice(attention, Staging(CPU), graphs, sizes)
        self.runner = Runner(self.model, self.pool, cpu_threads=1, device=self.device)

    @property
    def graphs(self) -> DecodeGraphs:
        assert self.device is not None
        assert self.device.graphs is not None
        return self.device.graphs


def generate(
    handler: CommunicationHandler, runner: Runner, prompts: list[list[int]], count: int
) -> list[list[int]]:
    """`count` greedy tokens of each prompt; those of the last prompt end after half of it."""
    scheduler = Scheduler(Limits(8, 64, LENGTH), BlockAllocator(BLOCKS, 16))
    plan = shard_worker_pb2.StepPlan()
    for number, prompt in enumerate(prompts):
        length = count if number < len(prompts) - 1 else max(1, count // 2)
        plan.arrivals.append(submission(number, prompt, max_tokens=length))
    tokens: list[list[int]] = [[] for _ in prompts]
    while True:
        scheduler.apply(plan)
        batch = scheduler.schedule()
        if not batch.slices:
            return tokens
        logits = runner.run(batch)
        handler.settle()
        results = sample(logits, batch.sampling)
        handler.check()
        plan = shard_worker_pb2.StepPlan()
        for result in results:
            assert result.error == ""
            tokens[result.sequence.sequence_id].append(result.token)
            plan.sampled.add(sequence_id=result.sequence.sequence_id, token_ids=[result.token])

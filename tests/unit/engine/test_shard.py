"""A shard's weights and pages over the epochs that it lives through."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ryzanstein_coordinator
from ryzanstein.model_plan import encode_model_config, read_model_config
from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.shard import Shard, build_shard
from tests.ranks import run_ranks

BUNDLED = Path(ryzanstein_coordinator.__file__).parent / "bundled_model"
CPU = torch.device("cpu")


def shard_of(rank: int, *, has_files: bool) -> Shard:
    request = shard_worker_pb2.LoadShardRequest(
        model=shard_worker_pb2.ModelSpec(
            path=str(BUNDLED) if has_files else "/nowhere",
            dtype="float32",
            max_model_len=64,
            config_json=encode_model_config(read_model_config(BUNDLED)),
            reproducible=True,
        ),
        rank=rank,
        tensor_parallel_size=2,
    )
    return build_shard(request, model_dir=None, device=CPU)


def test_weights_that_came_in_part_are_sent_again_in_the_next_epoch() -> None:
    """The sender dies in the middle, when the first modules are packed for serving already."""
    shards = [shard_of(0, has_files=True), shard_of(1, has_files=False)]
    shards[0].read(CPU, lambda fraction: None)

    def break_off(fraction: float) -> None:
        if fraction > 0.5:
            raise ConnectionError("the sender is gone")

    def hand_over(handler: CommunicationHandler) -> None:
        shards[handler.rank].exchange(handler, {1: 0}, CPU, break_off)

    with pytest.raises(ConnectionError):
        run_ranks(2, hand_over)
    assert not shards[1].loaded

    def hand_over_again(handler: CommunicationHandler) -> None:
        shards[handler.rank].exchange(handler, {1: 0}, CPU, lambda fraction: None)

    run_ranks(2, hand_over_again)
    assert shards[1].loaded
    expected = shard_of(1, has_files=True)
    expected.read(CPU, lambda fraction: None)
    received = shards[1].model
    for layer, other in zip(received.layers, expected.model.layers, strict=True):
        assert torch.equal(layer.mlp.down.plain_weight(), other.mlp.down.plain_weight())
    assert torch.equal(received.embedding.weight, expected.model.embedding.weight)


def test_pages_are_kept_while_the_limits_stay_and_made_anew_when_they_change() -> None:
    shard = shard_of(0, has_files=True)
    limits = shard_worker_pb2.EngineLimits(block_size=16, num_blocks=4)
    pool = shard.pool(limits, CPU)
    assert shard.pool(limits, CPU) is pool
    assert shard.kv_cache_bytes == pool.bytes
    smaller = shard_worker_pb2.EngineLimits(block_size=8, num_blocks=4)
    assert shard.pool(smaller, CPU).block_size == 8

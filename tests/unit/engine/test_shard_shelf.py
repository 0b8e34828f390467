"""What a worker holds: shards of one model in one form, whatever an earlier coordinator asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ryzanstein_coordinator
from ryzanstein.model_plan import ModelError
from ryzanstein.v1 import shard_worker_pb2
from ryzanstein_shard_worker.shard import Shard, ShardKey
from ryzanstein_shard_worker.shard_shelf import ShardShelf

BUNDLED = Path(ryzanstein_coordinator.__file__).parent / "bundled_model"
CPU = torch.device("cpu")


def spec(quantization: str) -> shard_worker_pb2.ModelSpec:
    return shard_worker_pb2.ModelSpec(
        path=str(BUNDLED), dtype="bfloat16", max_model_len=64, reproducible=True, quantization=quantization
    )


def load(shelf: ShardShelf, rank: int, quantization: str, *, beside: bool = False) -> Shard:
    request = shard_worker_pb2.LoadShardRequest(
        model=spec(quantization), rank=rank, tensor_parallel_size=2, beside=beside
    )
    return shelf.load(request, None, CPU, lambda fraction: None)


def test_shards_of_another_quantization_go_before_new_ones_come() -> None:
    shelf = ShardShelf()
    plain = load(shelf, 0, "none")
    load(shelf, 1, "none", beside=True)
    assert load(shelf, 0, "") is plain  # a coordinator that says nothing means none
    rounded = load(shelf, 0, "int8")
    assert shelf.current is rounded
    assert rounded.weights_bytes < 0.8 * plain.weights_bytes  # the embedding stays in bfloat16
    assert shelf.weights_bytes == rounded.weights_bytes


def test_a_rank_joins_only_with_the_quantization_of_its_group() -> None:
    shelf = ShardShelf()
    rounded = load(shelf, 1, "int8")
    for other in (ShardKey.of_rank(spec("none"), 1, 2), ShardKey.of_rank(spec("int8"), 0, 2)):
        with pytest.raises(RuntimeError, match="no shard loaded here"):
            shelf.take(other)
    assert shelf.take(ShardKey.of_rank(spec("int8"), 1, 2)) is rounded


def test_a_quantization_that_this_release_or_device_lacks_is_refused() -> None:
    with pytest.raises(ModelError, match="quantization 'int3' is not one of none, int8"):
        load(ShardShelf(), 0, "int3")
    request = shard_worker_pb2.LoadShardRequest(model=spec("int8"), rank=0, tensor_parallel_size=1)
    with pytest.raises(ModelError, match="int8 is for workers on CPUs"):
        ShardShelf().load(request, None, torch.device("cuda:0"), lambda fraction: None)

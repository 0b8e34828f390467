"""One rank's part of the weights: built, loaded, packed, and kept over every epoch that this rank keeps its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from ryzanstein.model_plan import CheckpointIndex, ModelConfig, ModelError, open_checkpoint, read_model_config
from ryzanstein.v1 import shard_worker_pb2

from .checkpoint import DistributedCheckpointLoader
from .communication import RebindableHandler
from .models import Decoder, build_model

log = structlog.get_logger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class ShardKey:
    """Two shards with equal keys are the same bytes."""

    fingerprint: str
    dtype: str
    max_model_len: int
    rank: int
    tensor_parallel_size: int

    @classmethod
    def of(cls, request: shard_worker_pb2.LoadShardRequest) -> ShardKey:
        model = request.model
        return cls(model.fingerprint, model.dtype, model.max_model_len, request.rank, request.tensor_parallel_size)


@dataclass(slots=True)
class Shard:
    """The model of one rank. `loaded` is False while the weights have to come from a peer."""

    key: ShardKey
    config: ModelConfig
    model: Decoder
    handler: RebindableHandler
    index: CheckpointIndex | None
    loaded: bool
    duration_s: float

    @property
    def weights_bytes(self) -> int:
        return self.model.weights_bytes


def load_shard(
    request: shard_worker_pb2.LoadShardRequest,
    *,
    model_dir: Path | None,
    device: torch.device,
    progress: Callable[[float], None],
) -> Shard:
    """Builds this rank's modules and fills them from the checkpoint's slices.

    Args:
        request: model, rank and size of the group.
        model_dir: this worker's own copy; None means the directory that the coordinator named.
        device: where the weights go.
        progress: told the loaded fraction, 0 to 1.

    Raises:
        ModelError: the checkpoint is not the one that the coordinator serves, or a tensor is wrong; names both.
    """
    started_at = time.monotonic()
    directory = model_dir or Path(request.model.path)
    config = read_model_config(directory)
    index = open_checkpoint(directory)
    if request.model.fingerprint and index.fingerprint != request.model.fingerprint:
        raise ModelError(
            f"{directory} is another checkpoint (fingerprint {index.fingerprint[:12]}) than the coordinator serves "
            f"({request.model.fingerprint[:12]}): copy the coordinator's directory or point --model-dir to it"
        )
    dtype = DTYPES[request.model.dtype]
    handler = RebindableHandler(request.rank, request.tensor_parallel_size)
    model = build_model(config, handler, dtype, device, max_positions=request.model.max_model_len)
    loader = DistributedCheckpointLoader(
        index, config, request.rank, request.tensor_parallel_size, dtype, device
    )
    loader.load(model, progress)
    duration_s = time.monotonic() - started_at
    shard = Shard(ShardKey.of(request), config, model, handler, index, True, duration_s)
    log.info("shard_loaded", rank=request.rank, weights_bytes=shard.weights_bytes, seconds=round(duration_s, 3))
    return shard

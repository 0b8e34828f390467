"""One rank's part of the weights: built, loaded, packed, and kept for as long as the rank keeps its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from ryzanstein.model_plan import (
    FP8,
    UNQUANTIZED,
    CheckpointIndex,
    ModelConfig,
    ModelError,
    check_quantization,
    decode_model_config,
    kv_head_range,
    open_checkpoint,
    read_model_config,
    refusal,
)
from ryzanstein.v1 import shard_worker_pb2

from .checkpoint import DistributedCheckpointLoader, DistributedParameterInitializer
from .communication import CommunicationHandler, RebindableHandler
from .models import Decoder, build_model
from .paged_attention import KVPool
from .parallel.fp8_weight import fp8_problem
from .step_device import StepDevice, step_device

log = structlog.get_logger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Told the loaded fraction, 0 to 1.
Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class ShardKey:
    """Two shards with equal keys are the same bytes."""

    fingerprint: str
    dtype: str
    max_model_len: int
    rank: int
    tensor_parallel_size: int
    reproducible: bool
    quantization: str = UNQUANTIZED

    @classmethod
    def of(cls, request: shard_worker_pb2.LoadShardRequest) -> ShardKey:
        return cls.of_rank(request.model, request.rank, request.tensor_parallel_size)

    @classmethod
    def of_rank(cls, model: shard_worker_pb2.ModelSpec, rank: int, size: int) -> ShardKey:
        return cls(
            fingerprint=model.fingerprint,
            dtype=model.dtype,
            max_model_len=model.max_model_len,
            rank=rank,
            tensor_parallel_size=size,
            reproducible=model.reproducible,
            quantization=model.quantization or UNQUANTIZED,
        )

    def is_of_model(self, other: ShardKey) -> bool:
        """Whether both are parts of the same weights in the same form."""
        return replace(self, rank=0, tensor_parallel_size=0, max_model_len=0) == replace(
            other, rank=0, tensor_parallel_size=0, max_model_len=0
        )


@dataclass(slots=True)
class Shard:
    """The model of one rank."""

    key: ShardKey
    config: ModelConfig
    model: Decoder
    #: What the layers hold; a group's handler is bound to it for each epoch.
    handler: RebindableHandler
    #: Of this worker's files; None on a host without them.
    index: CheckpointIndex | None
    #: False while the weights have to come from a peer.
    loaded: bool = False
    duration_s: float = 0.0
    #: Some of the weights came from a peer, which then failed.
    _begun: bool = False
    _pool: KVPool | None = None
    _device: StepDevice | None = None

    @property
    def weights_bytes(self) -> int:
        return self.model.weights_bytes if self.loaded else 0

    @property
    def kv_cache_bytes(self) -> int:
        return 0 if self._pool is None else self._pool.bytes

    def read(self, device: torch.device, progress: Progress) -> None:
        """Fills the model from this worker's files, packing layer by layer.

        Raises:
            ModelError: a tensor is missing or wrong, or a file changed; names both.
        """
        assert self.index is not None
        started_at = time.monotonic()
        key = self.key
        loader = DistributedCheckpointLoader(
            self.index, self.config, key.rank, key.tensor_parallel_size, DTYPES[key.dtype], device
        )
        loader.load(self.model, progress, self._pack)
        self._complete(started_at, "files", device)

    def exchange(
        self,
        handler: CommunicationHandler,
        source_rank_of: dict[int, int],
        device: torch.device,
        progress: Progress,
    ) -> None:
        """Gives weights to ranks without files, or takes them from one that has them. All ranks call it together.

        Raises:
            InitializationError: the ranks don't agree; CommunicationError: a rank failed on the way.
        """
        started_at = time.monotonic()
        if not self.loaded:
            if self._begun:  # what came is packed and can't be filled again
                del self.model  # before the new one, not beside it
                self.model = _blank(self.key, self.config, self.handler, device)
            self._begun = True
        initializer = DistributedParameterInitializer(handler, self.config, DTYPES[self.key.dtype], device)
        initializer.initialize(
            None if self.loaded else self.model, source_rank_of, self.index, progress, self._pack
        )
        if not self.loaded:
            self._complete(started_at, "peer", device)

    def pool(self, limits: shard_worker_pb2.EngineLimits, device: torch.device) -> KVPool:
        """Pages for this rank's key-value heads: those of the epoch before, if they are as many."""
        pool = self._pool
        if pool is None or (pool.num_blocks, pool.block_size) != (limits.num_blocks, limits.block_size):
            self._pool = pool = self._device = None  # before the new one, not beside it
            first, last = kv_head_range(self.config, self.key.rank, self.key.tensor_parallel_size)
            self._pool = pool = KVPool(
                self.config.num_layers,
                limits.num_blocks,
                last - first,
                self.config.head_dim,
                block_size=limits.block_size,
                dtype=DTYPES[self.key.dtype],
                device=device,
            )
            log.info("pages_allocated", rank=self.key.rank, bytes=pool.bytes, attention=pool.attention)
        return pool

    def step_device(self, pool: KVPool, limits: shard_worker_pb2.EngineLimits) -> StepDevice | None:
        """How a GPU's steps are launched over these pages: those of the epoch before, if nothing changed. CPU: None."""
        sizes, attention = tuple(limits.graph_sizes), limits.gpu_attention
        device = self._device
        if device is None or (device.graph_sizes, device.gpu_attention) != (sizes, attention):
            self._device = None  # before the new one, not beside it
            self._device = step_device(
                self.model,
                pool,
                sizes,
                max_model_len=self.key.max_model_len,
                reproducible=self.key.reproducible,
                gpu_attention=attention,
            )
        return self._device

    def leave(self) -> None:
        """The group is over: nothing that holds it is kept. Before the group is closed."""
        self.handler.unbind()
        if self._device is not None and self._device.graphs is not None:
            self._device.graphs.leave()

    def _pack(self, module: str) -> None:
        key = self.key
        self.model.pack_module(module, reproducible=key.reproducible, quantization=key.quantization)

    def _complete(self, started_at: float, source: str, device: torch.device) -> None:
        self.loaded = True
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what layers took before they were rounded
        self.duration_s = time.monotonic() - started_at
        log.info(
            "shard_loaded",
            rank=self.key.rank,
            source=source,
            weights_bytes=self.weights_bytes,
            quantization=self.key.quantization,
            seconds=round(self.duration_s, 3),
        )


def build_shard(
    request: shard_worker_pb2.LoadShardRequest, *, model_dir: Path | None, device: torch.device
) -> Shard:
    """This rank's modules, without their weights.

    Args:
        request: model, rank and size of the group.
        model_dir: this worker's own copy; None means the directory that the coordinator named, if this host has it.

    Raises:
        ModelError: the checkpoint here is not the one that the coordinator serves, or its weights can't be held on
            this device as asked.
    """
    key = ShardKey.of(request)
    _check_quantization(key, device)
    _check_attention(request.limits.gpu_attention, device)
    directory = model_dir or Path(request.model.path)
    index = None
    if model_dir is not None or (directory / "config.json").is_file():
        config = read_model_config(directory)
        index = open_checkpoint(directory)
        if request.model.fingerprint and index.fingerprint != request.model.fingerprint:
            raise ModelError(
                f"{directory} is another checkpoint (fingerprint {index.fingerprint[:12]}) than the coordinator "
                f"serves ({request.model.fingerprint[:12]}): copy the coordinator's directory or point --model-dir "
                "to such a copy"
            )
    else:
        log.info("no_checkpoint_here", directory=str(directory))
        config = decode_model_config(request.model.config_json)
    handler = RebindableHandler(key.rank, key.tensor_parallel_size)
    return Shard(key, config, _blank(key, config, handler, device), handler, index)


def _check_quantization(key: ShardKey, device: torch.device) -> None:
    check_quantization(key.quantization)
    if key.quantization == FP8:
        refused = fp8_problem(DTYPES[key.dtype], device)
    else:
        refused = refusal(key.quantization, device.type, key.dtype)
    if refused:
        raise ModelError(refused)


def _check_attention(kind: str, device: torch.device) -> None:
    """Before the weights are there: whether its numbers are right is tried on their pages."""
    if device.type == "cuda" and kind not in ("", "auto"):
        from .gpu.choice import attention_problem

        if refused := attention_problem(kind, device):
            raise ModelError(refused)


def _blank(key: ShardKey, config: ModelConfig, handler: RebindableHandler, device: torch.device) -> Decoder:
    return build_model(
        config,
        handler,
        DTYPES[key.dtype],
        device,
        max_positions=key.max_model_len,
        on_demand=key.quantization == FP8,  # what is rounded layer by layer need not fit in 16 bits
    )

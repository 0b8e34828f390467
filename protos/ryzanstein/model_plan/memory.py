"""Bytes per rank, from the plan alone: what the weights take and what a token of context takes."""

from __future__ import annotations

import math

from .config import DTYPE_BYTES, ModelConfig
from .fields import ModelError
from .tensors import check_tensor_parallel_size, kv_head_range, parameters, source_tensors


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the whole model; a tied head counts once."""
    return sum(math.prod(shape) for shape in source_tensors(config).values())


def weight_bytes_per_rank(
    config: ModelConfig, world: int, dtype: str | None = None, *, packed: bool = False
) -> int:
    """Bytes of one rank's weights held in `dtype` (None: that of the checkpoint), padding included.

    Every rank of a group has the same. A tied head counts once; `packed`: as CPUs serve it, where the head is a
    rearranged copy of the embedding and counts too. Raises ModelError for a group size or dtype that doesn't
    work.
    """
    plans = parameters(config, 0, world)
    elements = sum(math.prod(plan.shape) for plan in plans)
    if packed and config.tie_word_embeddings:
        elements += math.prod(plans[0].shape)
    return elements * dtype_bytes(dtype or config.dtype)


def kv_bytes_per_token(config: ModelConfig, world: int, dtype: str | None = None) -> int:
    """Bytes that one token takes in the KV cache of one rank: keys and values of its heads, all layers.

    Raises ModelError for a group size or dtype that doesn't work.
    """
    check_tensor_parallel_size(config, world)
    first, last = kv_head_range(config, 0, world)
    return 2 * config.num_layers * (last - first) * config.head_dim * dtype_bytes(dtype or config.dtype)


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element; ModelError for an unknown name."""
    if dtype not in DTYPE_BYTES:
        raise ModelError(f"dtype {dtype!r} is not supported; supported are {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype]

"""Bytes per rank, from the plan alone: what the weights take and what a token of context takes."""

from __future__ import annotations

import math
from dataclasses import replace

from .config import DTYPE_BYTES, ModelConfig
from .fields import ModelError
from .quantization import UNQUANTIZED, check_quantization, is_quantized, quantized_bytes
from .tensors import check_tensor_parallel_size, kv_head_range, parameters, source_tensors


def parameter_count(config: ModelConfig) -> int:
    """Parameters of the whole model; a tied head counts once."""
    return sum(math.prod(shape) for shape in source_tensors(config).values())


def weight_bytes_per_rank(
    config: ModelConfig,
    world: int,
    dtype: str | None = None,
    *,
    packed: bool = False,
    quantization: str = UNQUANTIZED,
) -> int:
    """Bytes of one rank's weights held in `dtype` (None: that of the checkpoint), padding included.

    Every rank of a group has the same. A tied head counts once; `packed`: the head is a rearranged or rounded copy of
    the embedding and counts too, as on CPUs, and on GPUs with 8-bit floats. Raises ModelError for a group size, dtype
    or quantization that doesn't work.
    """
    check_quantization(quantization)
    element = dtype_bytes(dtype or config.dtype)
    plans = parameters(config, 0, world)
    if packed and config.tie_word_embeddings:
        plans.append(replace(plans[0], name="head.weight"))
    return sum(
        quantized_bytes(quantization, plan.shape)
        if quantization != UNQUANTIZED and is_quantized(plan)
        else math.prod(plan.shape) * element
        for plan in plans
    )


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

"""From a Hugging Face model directory to the bytes of every rank, without torch or numpy.

The memory ledger, the loader and the front door all ask here, so that they can't disagree.
"""

from __future__ import annotations

from .config import DTYPE_BYTES, FAMILIES, ModelConfig, read_model_config
from .fields import ModelError
from .rope import RopeScaling
from .tensors import (
    ParameterPlan,
    Placement,
    Range,
    check_tensor_parallel_size,
    kv_head_range,
    module_of,
    parameters,
    placements,
    source_tensors,
    split_range,
    tensor_parallel_sizes,
)

__all__ = [
    "DTYPE_BYTES",
    "FAMILIES",
    "ModelConfig",
    "ModelError",
    "ParameterPlan",
    "Placement",
    "Range",
    "RopeScaling",
    "check_tensor_parallel_size",
    "kv_head_range",
    "module_of",
    "parameters",
    "placements",
    "read_model_config",
    "source_tensors",
    "split_range",
    "tensor_parallel_sizes",
]

"""From a Hugging Face model directory to the bytes of every rank, without torch or numpy.

The memory ledger, the loader and the front door all ask here, so that they can't disagree.
"""

from __future__ import annotations

from .boxes import Box
from .checkpoint import CheckpointFile, CheckpointIndex, Piece, TensorEntry
from .config import DTYPE_BYTES, FAMILIES, ModelConfig, read_model_config
from .config_json import decode_model_config, encode_model_config
from .fields import ModelError
from .layouts import open_checkpoint
from .memory import dtype_bytes, kv_bytes_per_token, parameter_count, weight_bytes_per_rank
from .quantization import (
    FP8,
    FP8_CAPABILITY,
    INT8,
    QUANTIZATIONS,
    UNQUANTIZED,
    check_quantization,
    is_quantized,
    refusal,
)
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
    "FP8",
    "FP8_CAPABILITY",
    "INT8",
    "QUANTIZATIONS",
    "UNQUANTIZED",
    "Box",
    "CheckpointFile",
    "CheckpointIndex",
    "ModelConfig",
    "ModelError",
    "ParameterPlan",
    "Piece",
    "Placement",
    "Range",
    "RopeScaling",
    "TensorEntry",
    "check_quantization",
    "check_tensor_parallel_size",
    "decode_model_config",
    "dtype_bytes",
    "encode_model_config",
    "is_quantized",
    "kv_bytes_per_token",
    "kv_head_range",
    "module_of",
    "open_checkpoint",
    "parameter_count",
    "parameters",
    "placements",
    "read_model_config",
    "refusal",
    "source_tensors",
    "split_range",
    "tensor_parallel_sizes",
    "weight_bytes_per_rank",
]

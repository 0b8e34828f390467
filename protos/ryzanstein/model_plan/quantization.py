"""How weights are held in fewer bits than the checkpoint has, and what that takes.

`int8`: the weights of the linear layers, the head among them, are 8-bit integers with one float32 scale per output
feature. Embedding, norms and biases stay in the dtype, and so do activations between layers and the KV cache. The head
is among them because every step reads it and its rounding does not show: docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import math

from .fields import ModelError
from .tensors import ParameterPlan

#: The weights as the checkpoint has them, in the dtype.
UNQUANTIZED = "none"
INT8 = "int8"

#: What `--quantization` takes.
QUANTIZATIONS = (UNQUANTIZED, INT8)

#: Why not, and what to do.
INT8_ON_GPUS = "int8 is for workers on CPUs; on GPUs serve with --quantization none, or give --device cpu"

#: Beside each output feature's integers: its scale, and the sum that oneDNN corrects zero points with.
_BYTES_PER_OUTPUT_FEATURE = 8


def check_quantization(name: str) -> None:
    """Raises ModelError, with the names that are known, for another one."""
    if name not in QUANTIZATIONS:
        raise ModelError(f"quantization {name!r} is not one of {', '.join(QUANTIZATIONS)}")


def is_quantized(plan: ParameterPlan) -> bool:
    """Whether the parameter is a linear layer's weight, which a quantised shard holds in fewer bits."""
    return len(plan.shape) == 2 and plan.name != "embedding.weight"


def int8_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a linear layer's weight [N, K] in 8-bit integers."""
    return math.prod(shape) + _BYTES_PER_OUTPUT_FEATURE * shape[0]

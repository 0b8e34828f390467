"""How weights are held in fewer bits than the checkpoint has, and what that takes.

`int8`: the weights of the linear layers, the head among them, are 8-bit integers with one float32 scale per output
feature, on CPUs. `fp8`: they are 8-bit floats (e4m3) with such scales, on GPUs that multiply them. Embedding, norms and
biases stay in the dtype, and so do activations between layers and the KV cache. The head is among them because every
step reads it and its rounding does not show: docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import math

from .fields import ModelError
from .tensors import ParameterPlan

#: The weights as the checkpoint has them, in the dtype.
UNQUANTIZED = "none"
INT8 = "int8"
FP8 = "fp8"

#: What `--quantization` takes.
QUANTIZATIONS = (UNQUANTIZED, INT8, FP8)

#: The least compute capability of a GPU that multiplies 8-bit floats (Ada; Hopper has 9.0).
FP8_CAPABILITY = (8, 9)
#: Both sides of a weight in 8-bit floats are whole multiples of this, filled up with zeros, for torch's product.
FP8_MULTIPLE = 16
#: Scales lie in memory of whole multiples of this: kernels read whole tiles of them
#: (https://github.com/pytorch/pytorch/issues/133334).
FP8_SCALES_MULTIPLE = 256

#: Beside each output feature's integers: its scale, and the sum that oneDNN corrects zero points with.
_BYTES_PER_OUTPUT_FEATURE = 8


def check_quantization(name: str) -> None:
    """Raises ModelError, with the names that are known, for another one."""
    if name not in QUANTIZATIONS:
        raise ModelError(f"quantization {name!r} is not one of {', '.join(QUANTIZATIONS)}")


def refusal(quantization: str, kind: str, dtype: str) -> str:
    """Why workers on devices of this kind can't hold such weights, and what to do; empty: they can.

    Args:
        quantization: a name of `QUANTIZATIONS`.
        kind: "cpu" or "cuda". Which GPU it is only its worker knows.
        dtype: of activations: a key of `DTYPE_BYTES`.
    """
    if quantization == INT8 and kind != "cpu":
        return (
            "int8 is for workers on CPUs; on GPUs serve with --quantization fp8 or none, or give --device cpu"
        )
    if quantization == FP8 and kind == "cpu":
        return "fp8 is for workers on GPUs; on CPUs serve with --quantization int8 or none"
    if quantization == FP8 and dtype == "float32":
        return "fp8 computes in bfloat16 or float16, not in float32: give --dtype bfloat16"
    return ""


def is_quantized(plan: ParameterPlan) -> bool:
    """Whether the parameter is a linear layer's weight, which a quantised shard holds in fewer bits."""
    return len(plan.shape) == 2 and plan.name != "embedding.weight"


def quantized_bytes(quantization: str, shape: tuple[int, ...]) -> int:
    """Bytes of a linear layer's weight [N, K] in `quantization`, which is not `UNQUANTIZED`."""
    return fp8_bytes(shape) if quantization == FP8 else int8_bytes(shape)


def int8_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a linear layer's weight [N, K] in 8-bit integers."""
    return math.prod(shape) + _BYTES_PER_OUTPUT_FEATURE * shape[0]


def fp8_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a linear layer's weight [N, K] in 8-bit floats: filled up, and the scales in float32."""
    out_features, in_features = (round_up(size, FP8_MULTIPLE) for size in shape)
    return out_features * in_features + 4 * round_up(out_features, FP8_SCALES_MULTIPLE)


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is not smaller."""
    return -(-size // multiple) * multiple

"""A linear layer's weight in 8-bit floats, for GPUs that multiply them."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from ryzanstein.model_plan import FP8_CAPABILITY, refusal
from ryzanstein.model_plan.quantization import FP8_MULTIPLE, round_up

from ..memory_errors import is_out_of_memory
from .fp8_rows import blank_rows, round_rows, round_rows_by_torch

#: Numbers of rows that the product is tried with, and sizes of the weight: neither is a tile's.
_TRIED_ROWS = (1, 17, 300)
_TRIED_SHAPE = (48, 80)
#: Of the result's dtype, relative to the largest: sums in float32 differ by order, and are rounded once.
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}


class Fp8Weight:
    """Weight [N, K] as e4m3 with one scale per output feature; activations are rounded row by row in each call.

    As `QuantizedWeight`, with its rules for a rank's part: the scales are of that part. Of a weight that is split by
    output features they are those of the whole.

    On a GPU torch multiplies (`torch._scaled_mm`: row-major times column-major, both sizes of the weight whole
    multiples of 16, scales [R, 1] and [1, N] in float32, sums in float32). Elsewhere it is computed as defined, in
    float32: for tests, and to measure what the rounding does to answers.
    """

    #: cuBLAS and CUTLASS choose kernels, and with them orders of summing, by the number of rows.
    reproducible = False

    def __init__(self, weight: Tensor) -> None:
        """Rounds a copy. Raises ValueError for a dtype that no such product gives."""
        if weight.dtype not in _TOLERANCE and weight.device.type != "cpu":
            raise ValueError(f"a {weight.dtype} weight on {weight.device} can't be served in 8-bit floats")
        self.out_features, self.in_features = weight.shape
        self._dtype = weight.dtype
        padded = round_up(self.out_features, FP8_MULTIPLE)
        with torch.no_grad():
            rounded, scales = round_rows_by_torch(weight.detach())
            if padded != self.out_features:
                rounded, scales = _filled_up(rounded, scales, padded)
        self._adds_bias = weight.device.type != "cuda" or not tried_product(
            weight.dtype, weight.device, biased=True
        )
        self._weight = rounded  # [N', K'], used transposed, as column-major
        self._scales = scales.view(1, padded)

    @property
    def nbytes(self) -> int:
        return self._weight.nbytes + self._scales.untyped_storage().nbytes()

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [.., K] → about x @ weight.T + bias [.., N], without gradient."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features), bias).view(*x.shape[:-1], self.out_features)
        if x.shape[0] == 0:
            return x.new_empty(0, self.out_features)
        extra = self._weight.shape[0] - self.out_features
        inner = bias if self._adds_bias else None
        if inner is not None and extra:
            inner = functional.pad(inner, (0, extra))
        rows, scales = round_rows(x)
        product = scaled_product if x.device.type == "cuda" else defined_product
        y = product(rows, self._weight, scales, self._scales, inner, self._dtype)
        if extra:
            y = y[:, : self.out_features].contiguous()
        return y if bias is None or self._adds_bias else y.add_(bias)  # rounded once more


def scaled_product(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """x e4m3 [R, K], weight e4m3 [N, K], scales [R, 1] and [1, N] → [R, N] in the dtype, which the bias has, too."""
    # Without fast accumulation: Hopper then adds up in float32 rather than in its tensor cores' fewer bits.
    y: Tensor = torch._scaled_mm(
        x, weight.t(), x_scales, weight_scales, bias=bias, out_dtype=dtype, use_fast_accum=False
    )
    return y


def defined_product(
    x: Tensor,
    weight: Tensor,
    x_scales: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """What `scaled_product` computes, in float32, rounded once."""
    y = (x.float() @ weight.float().t()).mul_(x_scales).mul_(weight_scales)
    return (y if bias is None else y.add_(bias.float())).to(dtype)


def fp8_problem(dtype: torch.dtype, device: torch.device) -> str:
    """Why a worker can't serve weights in 8-bit floats on this device, and what to do; empty: it can."""
    refused = refusal("fp8", device.type, str(dtype).removeprefix("torch."))
    if refused:
        return refused
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        return (
            f"fp8 needs a GPU of compute capability {'.'.join(map(str, FP8_CAPABILITY))} or more, and "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}: serve with --quantization none"
        )
    problem = tried_product(dtype, device, biased=False)
    return f"{problem}: serve with --quantization none, or install another torch" if problem else ""


@functools.cache
def tried_product(dtype: torch.dtype, device: torch.device, *, biased: bool) -> str:
    """What is wrong with `scaled_product` on this device, tried once per process; empty if it is right.

    Args:
        biased: with a bias, which it may lack where it has the product; then that is added behind it.
    """
    generator = torch.Generator().manual_seed(3)
    weight, bias, every = (
        torch.randn(size, generator=generator).to(device=device, dtype=dtype)
        for size in (_TRIED_SHAPE, _TRIED_SHAPE[:1], (_TRIED_ROWS[-1], _TRIED_SHAPE[1]))
    )
    rounded, scales = round_rows_by_torch(weight)
    for count in _TRIED_ROWS:
        rows, row_scales = round_rows_by_torch(every[:count])
        given = (rows, rounded, row_scales, scales.view(1, -1), bias if biased else None, dtype)
        expected = defined_product(*given).float()
        try:
            got = scaled_product(*given).float()
        except torch.AcceleratorError:
            raise  # the device's context is lost
        except Exception as error:  # whatever a library raises: it does not serve
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0][:200]
            return f"torch {torch.__version__} can't multiply 8-bit floats here: {type(error).__name__}: {reason}"
        worst = float((got - expected).abs().max() / expected.abs().max())
        if not worst <= _TOLERANCE[dtype]:
            return f"torch {torch.__version__} multiplies 8-bit floats wrongly here, by {worst:.2g}"
    return ""


def _filled_up(rounded: Tensor, scales: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """With rows of zeros, whose scales are zero, below."""
    floats, filled = blank_rows(rows, rounded.shape[1], rounded.device)
    count = rounded.shape[0]
    floats[:count] = rounded
    floats[count:].view(torch.uint8).zero_()
    filled.zero_()
    filled[:count] = scales
    return floats, filled

"""Rounding rows to 8-bit floats on a GPU: one Triton kernel, where torch's operations are nine."""

# Triton reads the kernels' annotations, so they are not postponed; its constants are in capitals everywhere.
# ruff: noqa: N803
import triton
import triton.language as tl
from torch import Tensor

from ..parallel.fp8_rows import LARGEST, LEAST_MAXIMUM, blank_rows


@triton.jit  # type: ignore[untyped-decorator]
def _round_kernel(  # type: ignore[no-untyped-def]
    floats,
    scales,
    x,
    x_stride,
    columns,
    filled_columns,
    MOST: tl.constexpr,
    LEAST: tl.constexpr,
    PADDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, PADDED)
    numbers = tl.load(x + row * x_stride + column, mask=column < columns, other=0.0).to(tl.float32)
    magnitudes = tl.abs(numbers)
    finite = magnitudes < float("inf")  # not so for NaN, which a maximum may pass over
    largest = tl.maximum(tl.max(tl.where(finite, magnitudes, 0.0), axis=0), LEAST)
    rounded = (numbers * (MOST / largest)).to(floats.dtype.element_ty)
    tl.store(floats + row * filled_columns + column, rounded, mask=column < filled_columns)
    strange = tl.max(tl.where(finite, 0, 1), axis=0)
    tl.store(scales + row, tl.where(strange > 0, float("nan"), largest / MOST))


def round_rows_by_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `parallel.fp8_rows.round_rows`; a scale may differ from torch's in the last bit."""
    rows, columns = x.shape
    floats, scales = blank_rows(rows, columns, x.device)
    if rows:
        if x.stride(1) != 1:
            x = x.contiguous()
        padded = triton.next_power_of_2(floats.shape[1])
        _round_kernel[(rows,)](
            floats,
            scales,
            x,
            x.stride(0),
            columns,
            floats.shape[1],
            MOST=LARGEST,
            LEAST=LEAST_MAXIMUM,
            PADDED=padded,
            num_warps=min(16, max(1, padded // 512)),
        )
    return floats, scales

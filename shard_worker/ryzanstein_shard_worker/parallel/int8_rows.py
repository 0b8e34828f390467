"""Symmetric 8-bit integers with one scale per row: what becomes of activations in a step, and of weights at loading.

    scale = max|x| / 127,  integer = x / scale, rounded to nearest, ties to even  (-127 to 127)

A row's integers and scale depend on that row only. A row of zeros has the scale 0; one with a value that is not finite
has the scale NaN, so that whatever is computed of it is NaN and is found where sums are checked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..native.int8_rows import native_int8_rows

#: The largest integer.
LEVELS = 127
#: Below this a row counts as zeros: LEVELS / max would overflow. Mirrored by RZ_LEAST_MAXIMUM in int8_rows_kernel.h.
LEAST_MAXIMUM = 1e-30
#: Numbers that torch rounds at a time, about: each takes 13 bytes meanwhile.
_BLOCK_NUMBERS = 1 << 20


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [R, K] → (int8 [R, K], scales [R] float32)."""
    native = native_int8_rows(x.dtype)
    return quantize_rows_by_torch(x) if native is None else native.quantize(x.contiguous())


def rescale_rows(y: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """y [R, N] float32, contiguous → y * scales [R] + bias [N], rounded once to `dtype`, which the bias has, too."""
    native = native_int8_rows(dtype)
    if native is None:
        return rescale_rows_by_torch(y, scales, bias, dtype)
    out = torch.empty(y.shape, dtype=dtype)
    native.rescale(out, y, scales, bias)
    return out


def quantize_rows_by_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, bit by bit, where the C library has no such function. Block by block: a whole weight in
    float32, several times, would be more memory than all that is planned beside it."""
    integers, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[0])
    step = max(1, _BLOCK_NUMBERS // max(1, x.shape[1]))
    for begin in range(0, x.shape[0], step):
        rows = slice(begin, begin + step)
        integers[rows], scales[rows] = _quantize_block(x[rows])
    return integers, scales


def _quantize_block(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.float()
    largest = values.abs().amax(dim=1)
    finite = largest.isfinite()
    counts = finite & (largest >= LEAST_MAXIMUM)
    inverse = torch.where(counts, torch.full_like(largest, LEVELS) / largest, 0.0)  # 127 / x is 127 * (1 / x)
    integers = (values * inverse[:, None]).round_()
    integers.masked_fill_(~counts[:, None], 0)  # infinity times 0 would be NaN
    scales = torch.where(counts, largest / LEVELS, 0.0).masked_fill_(~finite, torch.nan)
    return integers.to(torch.int8), scales


def rescale_rows_by_torch(y: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """As `rescale_rows`, bit by bit."""
    scaled = y * scales[:, None]
    return (scaled if bias is None else scaled + bias.float()).to(dtype)

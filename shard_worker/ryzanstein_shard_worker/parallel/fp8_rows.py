"""Rows in 8-bit floats (e4m3) with one scale each: what becomes of activations in a step, and of weights at loading.

    scale = max|x| / 448,  float = x / scale, rounded to nearest, ties to even  (-448 to 448)

A row's floats and scale depend on that row only. A row of zeros stays zeros; one with a value that is not finite
has the scale NaN, so that whatever is computed of it is NaN and is found where sums are checked. The format is E4M3 of
Micikevicius et al., FP8 Formats for Deep Learning (https://arxiv.org/abs/2209.05433).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ryzanstein.model_plan.quantization import FP8_MULTIPLE, FP8_SCALES_MULTIPLE, round_up

E4M3 = torch.float8_e4m3fn
#: The largest float.
LARGEST = 448.0
#: Below this a row's largest value counts as this: LARGEST / max would overflow.
LEAST_MAXIMUM = 1e-30
#: Elements that are widened at a time.
_BLOCK_ELEMENTS = 1 << 22


class RowRounding(Protocol):
    """x [R, K] → (e4m3 [R, K rounded up], scales [R, 1] float32)."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [R, K] → (e4m3 [R, K rounded up to whole multiples, filled with zeros], scales [R, 1] float32).

    By the kernel of x's device, where it has one that rounds rightly; else by torch.
    """
    if x.device.type == "cuda":
        from ..gpu.fp8_rounding import device_rounding

        kernel = device_rounding(x.dtype, x.device)
        if kernel is not None:
            return kernel(x)
    return round_rows_by_torch(x)


def round_rows_by_torch(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `round_rows`, block by block of rows, so that little is widened at a time."""
    rows, columns = x.shape
    floats, scales = blank_rows(rows, columns, x.device)
    step = max(1, _BLOCK_ELEMENTS // max(1, columns))
    for low in range(0, rows, step):
        values = x[low : low + step].float()
        largest = values.abs().amax(dim=1, keepdim=True)
        finite = largest.isfinite()
        largest.clamp_(min=LEAST_MAXIMUM)
        scales[low : low + step] = (largest / LARGEST).masked_fill_(~finite, torch.nan)
        rounded = (values * (LARGEST / largest)).to(E4M3)  # not in place: `float` copies no float32
        if floats.shape[1] != columns:
            # Of bytes: filling up has no kernel for 8-bit floats.
            bytes_ = functional.pad(rounded.view(torch.uint8), (0, floats.shape[1] - columns))
            rounded = bytes_.view(E4M3)
        floats[low : low + step] = rounded
    return floats, scales


def blank_rows(rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for so many rows, uninitialised; the scales lie in memory of whole tiles."""
    floats = torch.empty((rows, round_up(columns, FP8_MULTIPLE)), dtype=E4M3, device=device)
    scales = torch.empty(round_up(rows, FP8_SCALES_MULTIPLE), dtype=torch.float32, device=device)
    return floats, scales[:rows].view(rows, 1)

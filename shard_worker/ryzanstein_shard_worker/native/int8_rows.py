"""Rows of numbers to 8-bit integers and back on CPU: one call into C each, without gradients."""

from __future__ import annotations

import functools
from ctypes import CDLL, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from .elementwise import DTYPES
from .library import load_library

_HIGHEST_LEVEL = 2


class NativeInt8Rows:
    """The functions of int8_rows_kernel.h on tensors of one dtype.

    A row's bits depend on that row only, and are the same at every level of instructions. Tensors are of the given
    dtype, on CPU, and contiguous; nobody checks.

    Args:
        library: from `load_library`.
        dtype: a key of `DTYPES`.
        level: highest level of instructions: 0 baseline, 1 AVX2, 2 AVX-512.
    """

    def __init__(self, library: CDLL, dtype: torch.dtype, level: int = _HIGHEST_LEVEL) -> None:
        self._dtype, self._level = DTYPES[dtype], level
        pointer, size = c_void_p, c_int64
        self._quantize_rows = library.rz_quantize_rows
        self._quantize_rows.argtypes = [c_int32, c_int32, pointer, pointer, pointer, size, size]
        self._rescale_rows = library.rz_rescale_rows
        self._rescale_rows.argtypes = [c_int32, c_int32, *[pointer] * 4, size, size]
        for function in (self._quantize_rows, self._rescale_rows):
            function.restype = None

    def quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [R, K] → (int8 [R, K], scales [R] float32) with x ≈ integers * scales, ties to even."""
        rows, size = x.shape
        integers = torch.empty((rows, size), dtype=torch.int8)
        scales = torch.empty(rows, dtype=torch.float32)
        self._quantize_rows(
            self._dtype, self._level, integers.data_ptr(), scales.data_ptr(), x.data_ptr(), rows, size
        )
        return integers, scales

    def rescale(self, out: Tensor, y: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """out [R, N] = y * scales [R] + bias [N], y in float32, rounded once."""
        rows, size = y.shape
        self._rescale_rows(
            self._dtype,
            self._level,
            out.data_ptr(),
            y.data_ptr(),
            scales.data_ptr(),
            None if bias is None else bias.data_ptr(),
            rows,
            size,
        )


@functools.cache
def native_int8_rows(dtype: torch.dtype) -> NativeInt8Rows | None:
    """For CPU tensors of this dtype; None: torch's operations."""
    if dtype not in DTYPES:
        return None
    library = load_library()
    return None if library is None else NativeInt8Rows(library, dtype)

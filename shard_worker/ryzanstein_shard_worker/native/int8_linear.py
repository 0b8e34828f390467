"""Binding of int8_linear.c: products of rows of 8-bit integers with a weight in tiles, on CPUs with AMX."""

from __future__ import annotations

import ctypes
import functools
from typing import ClassVar

import torch
from torch import Tensor

from .elementwise import DTYPES
from .library import load_library

GROUP = 32  # RZ_INT8_GROUP
STEP = 64  # RZ_INT8_STEP


class Call(ctypes.Structure):
    """struct rz_int8_linear, which says what each field means."""

    _POINTERS = ("out", "x", "tiles", "row_scales", "feature_scales", "bias")
    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in ("x_stride", "rows", "out_features", "in_features")),
        ("dtype", ctypes.c_int32),
    ]


class NativeInt8Linear:
    """The functions of int8_linear.c on tensors on CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.run = library.rz_int8_linear
        self.run.restype, self.run.argtypes = ctypes.c_int32, [ctypes.POINTER(Call)]
        self._tile = library.rz_int8_linear_tile
        self._tile.restype, self._tile.argtypes = None, [pointer, pointer, size, size]

    @staticmethod
    def supports(in_features: int, dtype: torch.dtype) -> bool:
        """Whether weights of so many inputs can lie in tiles, with outputs of the dtype."""
        return in_features % STEP == 0 and dtype in DTYPES

    @staticmethod
    def tiles_bytes(out_features: int, in_features: int) -> int:
        """Of a weight in tiles: whole groups of features."""
        return -(-out_features // GROUP) * GROUP * in_features

    def tile(self, tiles: Tensor, weight: Tensor) -> None:
        """weight int8 [N, K], contiguous → `tiles` of `tiles_bytes`, at a multiple of 64 bytes."""
        self._tile(tiles.data_ptr(), weight.data_ptr(), *weight.shape)


class Int8TilesProduct:
    """x int8 [R, K], scales [R] → float(x @ weight.T) * feature scales * scales + bias [R, N], for one thread."""

    def __init__(
        self, native: NativeInt8Linear, tiles: Tensor, scales: Tensor, shape: tuple[int, int]
    ) -> None:
        """
        Args:
            tiles: of the weight; scales: float32 [N], of its output features; shape: (N, K).
        """
        self._run, self._held = native.run, (tiles, scales)
        self._features, self._inputs = shape
        self._call = Call(
            tiles=tiles.data_ptr(),
            feature_scales=scales.data_ptr(),
            x_stride=shape[1],
            out_features=shape[0],
            in_features=shape[1],
        )
        self._reference = ctypes.byref(self._call)

    def __call__(self, x: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`x` and `scales` as `quantize_rows` gives them, `bias` [N] contiguous and of the output's `dtype`. Raises
        MemoryError."""
        rows, call = x.shape[0], self._call
        out = torch.empty((rows, self._features), dtype=dtype)
        call.out, call.x, call.row_scales = out.data_ptr(), x.data_ptr(), scales.data_ptr()
        call.rows, call.dtype = rows, DTYPES[dtype]
        call.bias = None if bias is None else bias.data_ptr()
        if self._run(self._reference) != 0:
            raise MemoryError("no memory is left for the rows of a linear layer")
        return out


@functools.cache
def native_int8_linear() -> NativeInt8Linear | None:
    """The functions; None where the library can't be had or the CPU has no AMX for 8-bit integers."""
    library = load_library()
    if library is None or not library.rz_int8_linear_available():
        return None
    return NativeInt8Linear(library)

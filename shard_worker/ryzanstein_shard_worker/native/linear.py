"""Binding of linear.c: products of rows with a weight in tiles, on CPUs with AMX."""

from __future__ import annotations

import ctypes
import functools
from typing import ClassVar

import torch
from torch import Tensor

from .library import load_library

GROUP = 32  # RZ_LINEAR_GROUP
STEP = 32  # RZ_LINEAR_STEP


class Call(ctypes.Structure):
    """struct rz_linear, which says what each field means."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in ("out", "x", "tiles", "bias")),
        *((name, ctypes.c_int64) for name in ("x_stride", "rows", "out_features", "in_features")),
    ]


class NativeLinear:
    """The functions of linear.c on bfloat16 tensors on CPU. A row's bits depend on that row only."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._run = library.rz_linear
        self._run.restype, self._run.argtypes = ctypes.c_int32, [ctypes.POINTER(Call)]
        self._tile, self._untile = library.rz_linear_tile, library.rz_linear_untile
        for function in (self._tile, self._untile):
            function.restype, function.argtypes = None, [pointer, pointer, size, size]

    @staticmethod
    def supports(weight: Tensor) -> bool:
        """Whether such a weight [N, K] can lie in tiles."""
        return weight.dtype == torch.bfloat16 and not weight.is_cuda and weight.shape[1] % STEP == 0

    @staticmethod
    def tiles_bytes(out_features: int, in_features: int) -> int:
        """Of a weight in tiles: whole groups of features."""
        return -(-out_features // GROUP) * GROUP * in_features * 2

    def tile(self, tiles: Tensor, weight: Tensor) -> None:
        """weight [N, K], contiguous → `tiles` of `tiles_bytes`, at a multiple of 64 bytes."""
        self._tile(tiles.data_ptr(), weight.data_ptr(), *weight.shape)

    def untile(self, weight: Tensor, tiles: Tensor) -> None:
        """And back, bit by bit."""
        self._untile(weight.data_ptr(), tiles.data_ptr(), *weight.shape)

    def prepare(self, tiles: Tensor, out_features: int, in_features: int) -> Product:
        """Binds one weight."""
        return Product(self, tiles, out_features, in_features)


class Product:
    """x [T, K] → x @ weight.T + bias [T, N], without gradients, for one thread."""

    def __init__(self, native: NativeLinear, tiles: Tensor, out_features: int, in_features: int) -> None:
        self.tiles = tiles
        self._features, self._inputs = out_features, in_features
        self._call = Call(tiles=tiles.data_ptr(), out_features=out_features, in_features=in_features)
        self._reference = ctypes.byref(self._call)
        self._run = native._run

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`bias` [N], contiguous. Raises ValueError for x of another dtype or width, MemoryError."""
        rows, inputs = x.shape
        if inputs != self._inputs or x.dtype != torch.bfloat16:
            raise ValueError(f"this weight takes bfloat16 [T, {self._inputs}], not {x.dtype} {list(x.shape)}")
        if x.stride(1) != 1:
            x = x.contiguous()
        out = torch.empty((rows, self._features), dtype=torch.bfloat16)
        call = self._call
        call.out, call.x, call.rows, call.x_stride = out.data_ptr(), x.data_ptr(), rows, x.stride(0)
        call.bias = None if bias is None else bias.data_ptr()
        if self._run(self._reference) != 0:
            raise MemoryError("no memory is left for the rows of a linear layer")
        return out


@functools.cache
def native_linear() -> NativeLinear | None:
    """The functions; None where the library can't be had or the CPU has no AMX."""
    library = load_library()
    if library is None or not library.rz_linear_available():
        return None
    return NativeLinear(library)

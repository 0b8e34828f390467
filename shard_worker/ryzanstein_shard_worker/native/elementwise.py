"""Norms, rotations and the gate on CPU: one call into C each, without gradients."""

from __future__ import annotations

import functools
from ctypes import CDLL, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from .library import load_library

#: Mirrors `rz_elementwise_dtype` in elementwise.c.
DTYPES = {torch.float32: 0, torch.bfloat16: 1}

_HIGHEST_LEVEL = 2


class NativeElementwise:
    """The functions of elementwise.c on tensors of one dtype.

    A row's bits depend on that row only, and are the same at every level of instructions. Tensors are of the
    given dtype, on CPU, and contiguous where not said otherwise; nobody checks.

    Args:
        library: from `load_library`.
        dtype: a key of `DTYPES`.
        level: highest level of instructions: 0 baseline, 1 AVX2, 2 AVX-512.
    """

    def __init__(self, library: CDLL, dtype: torch.dtype, level: int = _HIGHEST_LEVEL) -> None:
        self._dtype, self._level = DTYPES[dtype], level
        pointer, size = c_void_p, c_int64
        self._add_rms_norm = library.rz_add_rms_norm
        self._add_rms_norm.argtypes = [c_int32, c_int32, *[pointer] * 5, size, size, c_float]
        self._rotate_heads = library.rz_rotate_heads
        self._rotate_heads.argtypes = [c_int32, c_int32, pointer, *[size] * 5, *[pointer] * 4, c_float]
        self._swiglu = library.rz_swiglu
        self._swiglu.argtypes = [c_int32, c_int32, pointer, pointer, size, size]
        for function in (self._add_rms_norm, self._rotate_heads, self._swiglu):
            function.restype = None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x [T, n] / root mean square of its rows * weight [n], in float32, rounded once."""
        rows, size = x.shape
        out = torch.empty_like(x)
        self._add_rms_norm(
            self._dtype,
            self._level,
            out.data_ptr(),
            None,
            x.data_ptr(),
            None,
            weight.data_ptr(),
            rows,
            size,
            eps,
        )
        return out

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(x + delta, its norm) [T, n] each; the sum is rounded before it is normalised."""
        rows, size = x.shape
        total, out = torch.empty_like(x), torch.empty_like(x)
        self._add_rms_norm(
            self._dtype,
            self._level,
            out.data_ptr(),
            total.data_ptr(),
            x.data_ptr(),
            delta.data_ptr(),
            weight.data_ptr(),
            rows,
            size,
            eps,
        )
        return total, out

    def rotate_heads(
        self,
        heads: Tensor,
        counts: tuple[int, int],
        cos: Tensor,
        sin: Tensor,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        """Turns queries and keys in place.

        Args:
            heads: [T, h, d], rows may be further apart than h * d.
            counts: of query heads and of key heads, which follow them; the rest is left alone.
            cos, sin: [T, 1, d], the sine negative in the first half.
            norms: weights [d] of the norms that queries and keys go through before, each head on its own.
            eps: of these norms.
        """
        rows, _, dim = heads.shape
        query_weight, key_weight = (None, None) if norms is None else (w.data_ptr() for w in norms)
        self._rotate_heads(
            self._dtype,
            self._level,
            heads.data_ptr(),
            rows,
            heads.stride(0),
            *counts,
            dim,
            cos.data_ptr(),
            sin.data_ptr(),
            query_weight,
            key_weight,
            eps,
        )

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """[T, 2n], gate then up → silu(gate) * up [T, n], in float32, rounded once."""
        rows, width = gate_up.shape
        out = gate_up.new_empty(rows, width // 2)
        self._swiglu(self._dtype, self._level, out.data_ptr(), gate_up.data_ptr(), rows, width // 2)
        return out


@functools.cache
def native_elementwise(dtype: torch.dtype, device: torch.device) -> NativeElementwise | None:
    """What layers of this dtype on this device may use; None: torch's operations."""
    if device.type != "cpu" or dtype not in DTYPES:
        return None
    library = load_library()
    return None if library is None else NativeElementwise(library, dtype)

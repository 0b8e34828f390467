"""Binding of sampling.c: one draw in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from ctypes import c_float, c_int64, c_uint32, c_uint64, c_void_p

import torch
from torch import Tensor

from .library import load_library

_WORD = 0xFFFFFFFF


def native_draw(
    logits: Tensor, ids: Tensor | None, *, temperature: float, seed: int, choice: int, position: int
) -> int | None:
    """The place of the largest logit / temperature + noise, as `philox.gumbel_noise` gives it; the first of equals.

    Args:
        logits: [K] float32.
        ids: [K] int64, the token of each; None: 0, 1, ..
        temperature: above 0.
        seed: 64 bits.
        choice, position: of the draw.

    Returns:
        None where the library can't be had, or the logits are not float32 on a CPU.
    """
    draw = _draw()
    if draw is None or logits.device.type != "cpu" or logits.dtype != torch.float32:
        return None
    logits = logits.contiguous()
    tokens = None if ids is None else ids.contiguous()
    place: int = draw(
        logits.data_ptr(),
        None if tokens is None else tokens.data_ptr(),
        len(logits),
        temperature,
        seed,
        choice & _WORD,
        position & _WORD,
    )
    return place


@functools.cache
def _draw() -> Callable[..., int] | None:
    library = load_library()
    if library is None:
        return None
    library.rz_draw.restype = c_int64
    library.rz_draw.argtypes = [c_void_p, c_void_p, c_int64, c_float, c_uint64, c_uint32, c_uint32]
    draw: Callable[..., int] = library.rz_draw
    return draw

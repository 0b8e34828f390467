"""Binding of greedy.c: the largest logit of each row in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from .library import load_library


def native_greedy(logits: Tensor) -> tuple[list[bool], list[int]] | None:
    """Whether all of a row is finite, and the place of the first of its largest numbers, for each row.

    Args:
        logits: [R, V], R and V above 0; rows may be further apart than V.

    Returns:
        None where the library can't be had, or the logits are not float32 rows on a CPU.
    """
    greedy = _greedy()
    if greedy is None or logits.is_cuda or logits.dtype != torch.float32 or logits.stride(1) != 1:
        return None
    rows, count = logits.shape
    places, finite = (c_int64 * rows)(), (c_int32 * rows)()
    greedy(places, finite, logits.data_ptr(), rows, count, logits.stride(0))
    return [bool(good) for good in finite], list(places)


@functools.cache
def _greedy() -> Callable[..., None] | None:
    library = load_library()
    if library is None:
        return None
    library.rz_greedy.restype = None
    library.rz_greedy.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64]
    greedy: Callable[..., None] = library.rz_greedy
    return greedy

"""What malloc does with memory that is freed: kept for the next step, or given back to the system."""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable
from typing import Any

#: Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: A piece this large is mapped by itself, and goes back as soon as it is freed.
_LOADING_BYTES = 2**20
#: Larger pieces than most of a step's activations go back in any case. Before 2.35 glibc takes no more than this.
_KEPT_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """While steps follow each other, with pieces of the same sizes.

    By default large pieces are new pages in every step: mapped, cleared, touched for the first time, and given back a
    moment later. In prefill by a small model that is an eighth of the time. What is kept is no more than what the
    largest step needs, which the memory's plan has counted.
    """
    _set_thresholds(_KEPT_BYTES)


def give_freed_memory_back() -> None:
    """While weights are loaded and packed: pieces that come once. Also what was kept goes."""
    _set_thresholds(_LOADING_BYTES)
    trim = _function("malloc_trim")
    if trim is not None:
        trim(mmap.PAGESIZE)


def _set_thresholds(nbytes: int) -> None:
    mallopt = _function("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, nbytes)
        mallopt(_TRIM_THRESHOLD, nbytes)


@functools.cache
def _function(name: str) -> Callable[..., Any] | None:
    """Of the C library; None where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None)

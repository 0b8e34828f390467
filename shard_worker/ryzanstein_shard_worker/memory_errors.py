"""Which exceptions mean that there is no memory left."""

from __future__ import annotations

import torch

#: How a RuntimeError of torch says it: the CPU's allocator, the CUDA libraries that allocate for themselves.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED", "std::bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's or the host's memory ran out. The process and its weights are fine then."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, torch.AcceleratorError) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return any(sign in text for sign in _SIGNS)

"""Memory for weights in pages of 2 MiB: a step reads all of them, and looks up 512 times fewer addresses on the way."""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

#: What Linux calls a huge page on x86-64, and on arm64 with pages of 4 KiB.
HUGE_PAGE_BYTES = 2 * 1024 * 1024

#: Weights lie one behind the other, so that small ones share pages, too. What is not used takes no memory.
CHUNK_BYTES = 16 * HUGE_PAGE_BYTES
_LINE_BYTES = 64


class HugePages:
    """Hands out memory that lives as long as the tensors over it; a chunk as long as any of its tensors.

    Where the system has no huge pages to give (`/sys/kernel/mm/transparent_hugepage/enabled` says never) the pages are
    ordinary ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, nbytes: int) -> Tensor:
        """→ uint8 [nbytes] at a multiple of 64 bytes, all zeros."""
        if nbytes > CHUNK_BYTES:
            return _map(nbytes)  # of its own, so that it goes with its weight
        with self._lock:
            begin = -(-self._used // _LINE_BYTES) * _LINE_BYTES
            if begin + nbytes > len(self._chunk):
                self._chunk, begin = _map(CHUNK_BYTES), 0
            self._used = begin + nbytes
            return self._chunk[begin : self._used]


def huge_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in memory of their own, which the system gives as it is used, in huge pages where it has them."""
    return _map(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def _map(nbytes: int) -> Tensor:
    """uint8 [nbytes] that begins where a huge page does. Raises MemoryError."""
    try:
        mapped = mmap.mmap(-1, nbytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {nbytes} bytes: {error}") from None
    with contextlib.suppress(AttributeError, OSError):  # not on this system
        mapped.madvise(mmap.MADV_HUGEPAGE)
    everything = torch.frombuffer(mapped, dtype=torch.uint8)
    begin = -everything.data_ptr() % HUGE_PAGE_BYTES
    return everything[begin : begin + nbytes]


#: Of this process.
huge_pages = HugePages()

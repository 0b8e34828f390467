"""A checkpoint file in memory: its tensors are views of the page cache, without a copy."""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
from types import TracebackType

import torch
from torch import Tensor

from ryzanstein.model_plan import CheckpointFile, ModelError

from .distributor import ITEM_BYTES, Read

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

# A private mapping counts against the memory that may be promised, though it is never written to here.
# Without this flag (which Python has no name for) a file larger than the machine's memory could not be
# mapped.
_NO_RESERVE = 0x4000 if platform.machine() in ("x86_64", "aarch64") else 0


class MappedFile:
    """One file, mapped copy-on-write, because torch warns of read-only memory. Nothing is written to it.

    `view` checks the file's size and time of change before it hands out memory, and raises ModelError if they
    differ from those of the header. What remains: a file that another process truncates while a view is
    copied, within milliseconds, still ends this process with SIGBUS; its supervisor sees the death by a
    signal. Replacing a checkpoint by writing a new directory and renaming it avoids that altogether.
    """

    def __init__(self, file: CheckpointFile) -> None:
        self.path = file.path
        self._file = file
        self._descriptor = -1

    def __enter__(self) -> MappedFile:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            self.check()
            self._map = mmap.mmap(
                self._descriptor,
                self._file.size_bytes,
                flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        except (OSError, ValueError) as error:
            self._close()
            raise ModelError(f"{self.path}: can't be mapped: {error}") from None
        except ModelError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A view that an exception's traceback keeps alive keeps the mapping too, and both go together.
        with contextlib.suppress(BufferError):
            self._map.close()
        self._close()

    def check(self) -> None:
        """Raises ModelError if the file is not the one whose header was read."""
        stat = os.fstat(self._descriptor)
        if (stat.st_size, stat.st_mtime_ns) != (self._file.size_bytes, self._file.modified_ns):
            raise ModelError(
                f"{self.path}: changed after its header was read (it had {self._file.size_bytes} bytes, now "
                f"{stat.st_size}); start again when nothing writes it any more"
            )

    def view(self, read: Read) -> Tensor:
        """The part `read.source` of a piece, in the file's dtype; usually a view of the file's pages."""
        self.check()
        dtype, item_bytes = TORCH_DTYPES[read.dtype], ITEM_BYTES[read.dtype]
        if read.begin % item_bytes:  # the format doesn't promise alignment; torch needs it
            return self._aligned(read, dtype)
        count = 1
        for size in read.shape:
            count *= size
        piece = torch.frombuffer(self._map, dtype=dtype, count=count, offset=read.begin).view(read.shape)
        return piece[tuple(slice(*part) for part in read.source)]

    def release(self, begin: int, end: int) -> None:
        """Takes the pages out of this process, so that it holds them only once; the page cache keeps them."""
        start = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _aligned(self, read: Read, dtype: torch.dtype) -> Tensor:
        (first, last), *columns = read.source
        row_bytes = ITEM_BYTES[read.dtype]
        for size in read.shape[1:]:
            row_bytes *= size
        raw = torch.frombuffer(
            self._map,
            dtype=torch.uint8,
            count=(last - first) * row_bytes,
            offset=read.begin + first * row_bytes,
        )
        rows = raw.clone().view(dtype).view(last - first, *read.shape[1:])
        return rows[(slice(None), *(slice(*part) for part in columns))]

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

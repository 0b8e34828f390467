"""Weights into a GPU as fast as its bus takes them: several threads read the file, a stream of its own copies.

Reading a file that the page cache holds costs a copy by a processor, about 5 to 10 GB/s for one; a mapping adds a
fault for every few pages. So each thread reads (`preadv`, which frees the interpreter's lock) into a page-locked buffer
of its own, converts and packs there what the device needs, and leaves the rest to the copy engine. Host memory is
bounded by the buffers, whatever the model's size.
"""

from __future__ import annotations

import math
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ryzanstein.model_plan import CheckpointFile, ModelError

from .distributor import ITEM_BYTES, Read
from .mapped_file import TORCH_DTYPES
from .transfer import check_range

#: Buffers beyond one for each thread: these are on their way to the device.
_IN_FLIGHT = 4
#: Reads that are handed out before they are waited for, for each thread.
_AHEAD = 2


@dataclass(slots=True)
class _Buffer:
    """Room for one read as it stands in the file, and for what of it goes to the device."""

    raw: Tensor  # uint8
    staged: Tensor  # uint8, page-locked
    #: The device has read `staged`; None: nothing was sent from it.
    sent: torch.cuda.Event | None = None


def thread_count() -> int:
    """So many threads read: more than eight gain nothing before the bus is full."""
    return max(1, min(8, len(os.sched_getaffinity(0))))


class ParallelReads:
    """Reads of a checkpoint in the order given, each copied to its target on the device.

    Use it in a `with` block. Threads, buffers and the stream end with it.
    """

    def __init__(
        self,
        files: Sequence[CheckpointFile],
        device: torch.device,
        *,
        buffer_bytes: int,
        threads: int | None = None,
    ) -> None:
        """`buffer_bytes`: what the largest read spans in its file."""
        self._files = files
        self._device = device
        self._threads = threads or thread_count()
        self._buffer_bytes = buffer_bytes
        self._free: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()

    @contextmanager
    def open(self) -> Iterator[ParallelReads]:
        """The threads and buffers, for as long as the block lasts."""
        pinned = self._device.type == "cuda"
        for _ in range(self._threads + _IN_FLIGHT):
            # Read as it is, and packed: where whole rows are needed the second is enough.
            self._free.put(
                _Buffer(
                    torch.empty(0, dtype=torch.uint8),
                    torch.empty(self._buffer_bytes, dtype=torch.uint8, pin_memory=pinned),
                )
            )
        with ExitStack() as stack:
            stack.callback(self._close)
            if self._stream is not None:  # what was written to the targets before stays before
                self._stream.wait_stream(torch.cuda.current_stream(self._device))
            self._pool = stack.enter_context(
                ThreadPoolExecutor(self._threads, thread_name_prefix="checkpoint-reader")
            )
            # Whoever leaves early waits for reads under way, not for those that nobody has begun.
            stack.callback(lambda: self._pool.shutdown(wait=True, cancel_futures=True))
            yield self

    def run(self, items: Sequence[tuple[Read, Callable[[], Tensor]]]) -> Iterator[Read]:
        """Gives each read when it is on its way to the device; its target is asked for when that begins.

        Raises:
            ModelError: a file changed, ends too early, or holds a value that the target's dtype does not.
        """
        waiting: deque[tuple[Read, Future[None]]] = deque()
        for read, target in items:
            there = target()
            # Its memory may have come just now, from something that the device still reads.
            given = None if self._stream is None else torch.cuda.current_stream(self._device).record_event()
            waiting.append((read, self._pool.submit(self._move, read, there, given)))
            if len(waiting) > self._threads * _AHEAD:
                yield self._done(waiting.popleft())
        while waiting:
            yield self._done(waiting.popleft())

    def finish(self) -> None:
        """Returns when all that was given has arrived."""
        if self._stream is not None:
            self._stream.synchronize()

    @staticmethod
    def _done(item: tuple[Read, Future[None]]) -> Read:
        read, future = item
        future.result()
        return read

    @torch.no_grad()  # of this thread, which does not have it from the one that loads
    def _move(self, read: Read, target: Tensor, given: torch.cuda.Event | None) -> None:
        buffer = self._free.get()
        try:
            if buffer.sent is not None:
                buffer.sent.synchronize()
                buffer.sent = None
            source = self._read(read, buffer)
            check_range(source, target.dtype, f"{self._files[read.file].path}: tensor {read.tensor}")
            self._send(source, target, buffer, given)
        finally:
            self._free.put(buffer)

    def _read(self, read: Read, buffer: _Buffer) -> Tensor:
        """The read's part of the file, in the file's dtype; strided where only some columns are wanted."""
        begin, end = read.span
        size = end - begin
        rows, *columns = read.source
        whole = all((start, stop) == (0, n) for (start, stop), n in zip(columns, read.shape[1:], strict=True))
        if whole:
            into = buffer.staged
        else:  # the columns are packed on their way from `raw` to `staged`
            if buffer.raw.numel() < size:
                buffer.raw = torch.empty(self._buffer_bytes, dtype=torch.uint8)
            into = buffer.raw
        _read_exactly(self._descriptor(read), into[:size], begin, self._files[read.file].path)
        dtype = TORCH_DTYPES[read.dtype]
        flat = into[:size].view(dtype)
        count = rows[1] - rows[0]
        if whole:
            return flat.view(count, *read.shape[1:])
        # The span begins at the first wanted column of the first row: the rest of the rows lies a row apart.
        strides = [1] * len(read.shape)
        for axis in range(len(read.shape) - 2, -1, -1):
            strides[axis] = strides[axis + 1] * read.shape[axis + 1]
        sizes = [stop - start for start, stop in read.source]
        return flat.as_strided(sizes, strides)

    def _send(self, source: Tensor, target: Tensor, buffer: _Buffer, given: torch.cuda.Event | None) -> None:
        """`given`: when the device has done with what lay at the target before."""
        count = source.numel()
        in_place = source.data_ptr() == buffer.staged.data_ptr()
        if in_place and source.dtype == target.dtype:
            staged = source
        else:
            if in_place:  # it is converted: out of its own way
                source = source.clone()
            staged = buffer.staged[: count * target.element_size()].view(target.dtype).view(source.shape)
            staged.copy_(source)
        if self._stream is None:
            target.copy_(staged)
            return
        with torch.cuda.stream(self._stream):
            if given is not None:
                self._stream.wait_event(given)
            target.copy_(staged, non_blocking=True)
            buffer.sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
            buffer.sent.record(self._stream)

    def _descriptor(self, read: Read) -> int:
        """The read's file, open and the one whose header was read."""
        file = self._files[read.file]
        with self._lock:
            descriptor = self._descriptors.get(file.path)
            if descriptor is None:
                try:
                    descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise ModelError(f"{file.path}: can't be read: {error}") from None
                self._descriptors[file.path] = descriptor
        stat = os.fstat(descriptor)
        if (stat.st_size, stat.st_mtime_ns) != (file.size_bytes, file.modified_ns):
            raise ModelError(
                f"{file.path}: changed after its header was read (it had {file.size_bytes} bytes, now "
                f"{stat.st_size}); start again when nothing writes it any more"
            )
        return descriptor

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()  # what is on its way reads the buffers
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def largest_span(reads: Sequence[Read], widest_item: int) -> int:
    """Bytes that a buffer must hold: of the largest read in its file, or converted to `widest_item` bytes a number."""
    most = 1
    for read in reads:
        begin, end = read.span
        numbers = math.prod(stop - start for start, stop in read.source)
        most = max(most, end - begin, numbers * max(widest_item, ITEM_BYTES[read.dtype]))
    return most


def _read_exactly(descriptor: int, into: Tensor, offset: int, path: Path) -> None:
    view = memoryview(into.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(view):
        try:
            count = os.preadv(descriptor, [view[done:]], offset + done)
        except OSError as error:
            raise ModelError(f"{path}: can't be read: {error}") from None
        if count == 0:
            raise ModelError(f"{path}: ends before its header says")
        done += count

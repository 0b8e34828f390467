"""Moving a slice from the mapped file to where the parameter lives, with the conversion of its dtype."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ryzanstein.model_plan import ModelError


class Transfer(Protocol):
    """Copies sources into targets; the targets are complete after `finish`."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copies `source`, on the CPU, into `target` of the same shape. `source` may be freed on return."""
        ...

    def finish(self) -> None:
        """Returns when everything has arrived."""
        ...


_FLOAT16_MAX = 65504.0


def check_range(source: Tensor, dtype: torch.dtype, where: str) -> None:
    """Raises ModelError, beginning with `where`, if a value would become infinite in `dtype`.

    Only float16 has a smaller range than what checkpoints are stored in.
    """
    if dtype == torch.float16 and source.dtype != torch.float16 and source.numel():
        low, high = torch.aminmax(source)
        if max(-low.item(), high.item()) > _FLOAT16_MAX:
            raise ModelError(f"{where}: has values too large for float16; use bfloat16 or float32")


def make_transfer(device: torch.device) -> Transfer:
    """The way that suits the device."""
    return DirectTransfer() if device.type == "cpu" else StagedTransfer(device)


class DirectTransfer:
    """CPU: from the page cache into the parameter in one pass."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """As in `Transfer`."""
        target.copy_(source)

    def finish(self) -> None:
        """As in `Transfer`."""


class StagedTransfer:
    """GPU: through a few page-locked buffers: the processors fill one while the device fetches another.

    A copy straight from pageable memory would go through one small buffer of the driver, and strided columns
    through a temporary tensor.
    """

    def __init__(self, device: torch.device, *, buffer_bytes: int = 64 << 20, buffers: int = 3) -> None:
        self._device = device
        pinned = device.type == "cuda"
        self._buffers = [
            torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(buffers)
        ]
        self._busy: list[torch.cuda.Event | None] = [None] * buffers
        self._next = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        """As in `Transfer`; a source larger than a buffer goes in parts."""
        row_bytes = max(1, math.prod(source.shape[1:]) * target.element_size())
        step = max(1, self._buffers[0].numel() // row_bytes)
        for start in range(0, source.shape[0], step):
            self._copy_part(target[start : start + step], source[start : start + step])

    def finish(self) -> None:
        """As in `Transfer`."""
        for event in self._busy:
            if event is not None:
                event.synchronize()

    def _copy_part(self, target: Tensor, source: Tensor) -> None:
        part_bytes = source.numel() * target.element_size()
        if part_bytes > self._buffers[0].numel():  # a single row larger than a buffer
            target.copy_(source)
            return
        slot, self._next = self._next, (self._next + 1) % len(self._buffers)
        event = self._busy[slot]
        if event is not None:
            event.synchronize()
        staged = self._buffers[slot][:part_bytes].view(target.dtype).view(source.shape)
        staged.copy_(source)  # here the dtype is converted: only bytes that are kept cross the bus
        target.copy_(staged, non_blocking=True)
        if self._device.type == "cuda":
            event = event or torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._busy[slot] = event

"""How a step's numbers get to the device: all of them in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Copies that may be under way: the leader waits for the device in every step, other ranks run ahead.
_SLOTS = 4


class LastCopy:
    """The last asynchronous copy out of a page-locked buffer. Where nothing is page-locked nobody waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._event: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Until the copy has read the buffer: then it may be written."""
        if self._event is not None:
            self._event.synchronize()

    def record(self) -> None:
        """After a copy was launched on the current stream."""
        if self._device is not None:
            self._event = self._event or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(self._device))


class Staging:
    """Page-locked buffers that are used in turn. int32 only: ids, positions, slots and lengths fit."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers = [torch.empty(0, dtype=torch.int32)] * _SLOTS
        self._copied = [LastCopy(device) for _ in range(_SLOTS)]
        self._next = 0

    def send(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """int32 tensors on the CPU → the same on the device, as views of one buffer. They may be changed on return."""
        slot, self._next = self._next, (self._next + 1) % _SLOTS
        total = sum(part.numel() for part in parts)
        copied = self._copied[slot]
        copied.wait()  # of four steps ago: it has long been reached
        if self._buffers[slot].numel() < total:
            self._buffers[slot] = torch.empty(2 * total, dtype=torch.int32, pin_memory=self._pinned)
        staged = self._buffers[slot][:total]
        torch.cat([part.reshape(-1) for part in parts], out=staged)
        there = torch.empty(total, dtype=torch.int32, device=self._device)
        there.copy_(staged, non_blocking=True)
        copied.record()
        views = there.split_with_sizes([part.numel() for part in parts])
        return [view.view(part.shape) for view, part in zip(views, parts, strict=True)]


class FixedStaging:
    """A block of int32 on the device that stays where it is, so that a captured graph reads it, and its page-locked
    twin on the host. `device` and `host` are views of the same regions."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        total = sum(sizes)
        pinned = device.type == "cuda"
        self._host = torch.zeros(total, dtype=torch.int32, pin_memory=pinned)
        self._there = torch.zeros(total, dtype=torch.int32, device=device)
        self._copied = LastCopy(device)
        self.host = list(self._host.split_with_sizes(list(sizes)))
        self.device = list(self._there.split_with_sizes(list(sizes)))

    def wait(self) -> None:
        """Until `host` may be written: the copy before has read it."""
        self._copied.wait()

    def send(self) -> None:
        """One copy, behind what was launched before on this stream."""
        self._there.copy_(self._host, non_blocking=True)
        self._copied.record()

"""Whether a rank's part of a sum holds NaN or infinity: at once on a CPU, at the end of a step on a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..native.finite import native_non_finite

#: Sums of one step whose flags are kept apart; more are folded together.
_SLOTS = 1024
_NOTED = (torch.float32, torch.bfloat16, torch.float16)


def holds_non_finite(tensor: Tensor) -> bool:
    """Whether NaN or infinity is in a CPU tensor [*S], of any strides. Waits for nothing else."""
    found = native_non_finite(tensor)
    if found is None:
        return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    return found


def spoil(tensor: Tensor) -> None:
    """Fills a tensor of floating-point numbers with NaN, for tests that poison a rank."""
    if tensor.is_floating_point():
        tensor.detach().fill_(math.nan)


class DeviceFlags:
    """The largest magnitude of each part that this rank gave to a sum, kept on the device until a step ends.

    NaN and infinity survive a maximum. One kernel per sum, and no wait for the device. The slots are in the order of
    the sums: after one bad part all later ones are bad on every rank, so that the first tells whose it was.
    """

    def __init__(self) -> None:
        self._slots: Tensor | None = None
        self._used = 0

    def note(self, tensor: Tensor) -> None:
        """This is about to be summed. float64, which no model is served in, is not looked at."""
        if tensor.dtype not in _NOTED or not tensor.numel():
            return
        if self._slots is None:
            self._slots = torch.zeros(_SLOTS, dtype=torch.float32, device=tensor.device)
        if self._used == _SLOTS:
            self._slots[0] = self._slots.amax()
            self._used = 1
        slot = self._slots[self._used]
        torch.linalg.vector_norm(tensor.detach(), ord=math.inf, dtype=torch.float32, out=slot)
        self._used += 1

    def filled(self, count: int) -> None:
        """The first `count` slots were written by a graph that is replayed."""
        self._used = count

    def take(self) -> Tensor | None:
        """→ [sums] float32 on the device, of the parts since the last call; None if there were none.

        It is overwritten by later parts: use it on the same stream.
        """
        used, self._used = self._used, 0
        return None if self._slots is None or not used else self._slots[:used]


def first_non_finite(magnitudes: Tensor) -> int | None:
    """[world, sums] → the rank whose part was bad first; None if all were finite. Waits for the device."""
    finite = torch.isfinite(magnitudes)
    if bool(finite.all()):
        return None
    bad = (~finite).cpu()
    column = int(bad.any(dim=0).int().argmax())
    return int(bad[:, column].int().argmax())

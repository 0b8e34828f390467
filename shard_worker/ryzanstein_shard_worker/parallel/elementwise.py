"""What the layers use for norms, rotations and the gate when no gradient is asked for."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..native.elementwise import native_elementwise


class Elementwise(Protocol):
    """As `NativeElementwise` has them, whatever computes them."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]: ...

    def rotate_heads(
        self,
        heads: Tensor,
        counts: tuple[int, int],
        cos: Tensor,
        sin: Tensor,
        norms: tuple[Tensor, Tensor] | None = None,
        eps: float = 0.0,
    ) -> None: ...

    def swiglu(self, gate_up: Tensor) -> Tensor: ...


def fused_elementwise(dtype: torch.dtype, device: torch.device) -> Elementwise | None:
    """The kernels for layers of this dtype on this device; None: torch's operations."""
    if device.type == "cuda":
        from ..gpu.elementwise import device_elementwise

        return device_elementwise(dtype, device)
    return native_elementwise(dtype, device)

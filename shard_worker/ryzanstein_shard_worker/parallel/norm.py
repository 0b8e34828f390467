"""Root mean square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..communication import CommunicationHandler
from .autograd import copy_to_ranks
from .elementwise import fused_elementwise
from .layer import empty_parameter


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich, arXiv:1910.07467).

    Computed in float32, rounded once. The weight is whole on every rank.

    Args:
        size: of the last dimension.
        eps: added to the mean square.
        dtype, device: of the weight.
        split_over: the group, if ranks normalise different vectors with the same weight: its gradient is
            then summed over them. None: all ranks normalise the same.
    """

    def __init__(
        self,
        size: int,
        *,
        eps: float,
        dtype: torch.dtype,
        device: torch.device,
        split_over: CommunicationHandler | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.size = (size,)
        self.weight = empty_parameter(size, dtype=dtype, device=device)
        self._split_over = split_over
        self._native = fused_elementwise(dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., size] → the same shape."""
        if self._native is not None and x.dim() == 2 and not torch.is_grad_enabled():
            return self._native.rms_norm(x.contiguous(), self.weight, self.eps)
        weight: Tensor = self.weight
        if self._split_over is not None:
            weight = copy_to_ranks(weight, self._split_over)
        return functional.rms_norm(x, self.size, weight, self.eps)

    def after_adding(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """x and delta [T, size] → (x + delta, its norm); a delta of None is nothing to add."""
        if delta is None:
            return x, self(x)
        if self._native is not None and not torch.is_grad_enabled():
            return self._native.add_rms_norm(x, delta, self.weight, self.eps)
        x = x + delta
        return x, self(x)

"""One layer of a transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..communication import CommunicationHandler
from .attention import Attend, ParallelAttention
from .layer import TensorParallelLayer
from .mlp import ParallelMLP
from .norm import RMSNorm
from .rotary import Rotation


class TensorParallelTransformerBlock(TensorParallelLayer):
    """x + attention(norm(x)), then x + mlp(norm(x)): two sums over the ranks per block.

    Args:
        attention, mlp: the two halves.
        hidden_size: of x.
        norm_eps: of both norms.
        handler: of the group.
        dtype, device: of the norms' weights.
    """

    def __init__(
        self,
        attention: ParallelAttention,
        mlp: ParallelMLP,
        *,
        hidden_size: int,
        norm_eps: float,
        handler: CommunicationHandler,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(handler)
        self.input_norm = RMSNorm(hidden_size, eps=norm_eps, dtype=dtype, device=device)
        self.attention = attention
        self.post_attention_norm = RMSNorm(hidden_size, eps=norm_eps, dtype=dtype, device=device)
        self.mlp = mlp

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """x [T, hidden] → [T, hidden], whole on every rank."""
        x, delta = self.advance(x, None, rotation, attend)
        return x + delta

    def advance(
        self, x: Tensor, delta: Tensor | None, rotation: Rotation, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """As forward, for blocks in a row: takes and gives x as two summands.

        So that an addition happens together with the norm that follows it, in the next block.
        """
        x, normed = self.input_norm.after_adding(x, delta)
        x, normed = self.post_attention_norm.after_adding(x, self.attention(normed, rotation, attend))
        return x, self.mlp(normed)

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
        return x if delta is None else x + delta

    def advance(
        self,
        x: Tensor,
        delta: Tensor | None,
        rotation: Rotation,
        attend: Attend,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As forward, for blocks in a row: takes and gives x as two summands.

        So that an addition happens together with the norm that follows it, in the next block.

        Args:
            rows: [R] int, the same on every rank: in the last block, the rows that somebody wants. The others take
                part in attention, as keys and values, and end there. None: all.

        Returns:
            Summands [T, hidden], or [R, hidden]; the second None if there is nothing to add.
        """
        x, normed = self.input_norm.after_adding(x, delta)
        attended = self.attention.heads(normed, rotation, attend)
        if rows is not None:
            x, attended = x[rows], attended[rows]
            if len(rows) == 0:
                return x, None
        x, normed = self.post_attention_norm.after_adding(x, self.attention.output(attended))
        return x, self.mlp(normed)

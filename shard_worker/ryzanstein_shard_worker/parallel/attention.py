"""Self-attention split by heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..communication import CommunicationHandler
from .elementwise import fused_elementwise
from .feature_slice import head_slice
from .layer import TensorParallelLayer
from .linear import ColumnParallelLinear, RowParallelLinear
from .norm import RMSNorm
from .rotary import Rotation, rotate

#: attend(layer, q [T, heads, d], k [T, kv_heads, d], v [T, kv_heads, d]) → [T, heads, d], the attention of this
#: rank's heads over whatever it keeps of earlier tokens. It knows lengths, windows and scale; q, k and v may be
#: slices of wider rows.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class ParallelAttention(TensorParallelLayer):
    """Query, key and value in one projection, rotation, attention, output projection.

    A rank computes num_heads / world query heads with the key-value heads that they read. With fewer key-value
    heads than ranks, neighbours hold the same one; its gradient is summed over them.

    Args:
        hidden_size, num_heads, num_kv_heads, head_dim: of the undivided layer.
        layer: index of the layer, handed to `attend`.
        qkv_bias, output_bias: whether these projections have one.
        qk_norm_eps: q and k are normalised per head before they are rotated; None: they are not.
        handler: of the group.
        dtype, device: of the parameters.

    Raises:
        ValueError: the heads can't be split so.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        layer: int,
        qkv_bias: bool,
        output_bias: bool,
        qk_norm_eps: float | None,
        handler: CommunicationHandler,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(handler)
        rank, world = handler.rank, handler.world_size
        if num_heads % world:
            raise ValueError(f"{num_heads} query heads can't be split over {world} ranks")
        queries = head_slice(num_heads, head_dim, rank, world)
        keys = head_slice(num_kv_heads, head_dim, rank, world)
        self.layer = layer
        self.head_dim = head_dim
        self.num_heads = queries.rows // head_dim  # of this rank
        self.num_kv_heads = keys.rows // head_dim
        self.qkv = ColumnParallelLinear(
            hidden_size,
            queries.size + 2 * keys.size,
            bias=qkv_bias,
            handler=handler,
            dtype=dtype,
            device=device,
            parts=(queries, keys, keys),
        )
        self.q_norm = self.k_norm = None
        if qk_norm_eps is not None:
            norm = partial(RMSNorm, head_dim, eps=qk_norm_eps, dtype=dtype, device=device, split_over=handler)
            self.q_norm, self.k_norm = norm(), norm()
        self._norm_eps = qk_norm_eps or 0.0
        self._native = fused_elementwise(dtype, device)
        self.output = RowParallelLinear(
            queries.size, hidden_size, bias=output_bias, handler=handler, dtype=dtype, device=device
        )

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """x [T, hidden] → [T, hidden], whole on every rank."""
        y: Tensor = self.output(self.heads(x, rotation, attend))
        return y

    def heads(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """x [T, hidden] → [T, heads * d], what this rank's heads read: all but the output projection."""
        queries, keys = self.num_heads, self.num_kv_heads
        heads = self.qkv(x).view(len(x), -1, self.head_dim)  # [T, heads + 2 kv_heads, d]
        if self._native is not None and not torch.is_grad_enabled():
            self._native.rotate_heads(heads, (queries, keys), *rotation, self._norm_weights(), self._norm_eps)
            q, k, v = heads.split_with_sizes((queries, keys, keys), dim=1)
        else:
            qk, v = heads.split_with_sizes((queries + keys, keys), dim=1)
            q, k = rotate(self._normalised(qk), rotation).split_with_sizes((queries, keys), dim=1)
        return attend(self.layer, q, k, v).reshape(len(x), -1)

    def _norm_weights(self) -> tuple[Tensor, Tensor] | None:
        if self.q_norm is None or self.k_norm is None:
            return None
        return self.q_norm.weight, self.k_norm.weight

    def _normalised(self, qk: Tensor) -> Tensor:
        if self.q_norm is None or self.k_norm is None:
            return qk
        q, k = qk.split_with_sizes((self.num_heads, self.num_kv_heads), dim=1)
        return torch.cat([self.q_norm(q), self.k_norm(k)], dim=1)

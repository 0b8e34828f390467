"""The feed-forward part of a block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..communication import CommunicationHandler
from .elementwise import fused_elementwise
from .feature_slice import even_slice
from .layer import TensorParallelLayer
from .linear import ColumnParallelLinear, RowParallelLinear

# Below so many elements torch computes an elementwise operation in one thread (at::internal::GRAIN_SIZE).
_ONE_THREAD = 32767


class ParallelMLP(TensorParallelLayer):
    """SwiGLU (Shazeer, arXiv:2002.05202): down(silu(gate(x)) * up(x)), the inner features split.

    Gate and up are one projection. A size that the group does not divide is padded: zeros stay zeros through
    all of it.

    Args:
        hidden_size, intermediate_size, bias: of the undivided layer.
        handler: of the group.
        dtype, device: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        bias: bool,
        handler: CommunicationHandler,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(handler)
        part = even_slice(intermediate_size, handler.rank, handler.world_size)
        self.gate_up = ColumnParallelLinear(
            hidden_size,
            2 * intermediate_size,
            bias=bias,
            handler=handler,
            dtype=dtype,
            device=device,
            parts=(part, part),
        )
        self.down = RowParallelLinear(
            intermediate_size, hidden_size, bias=bias, handler=handler, dtype=dtype, device=device
        )
        self._native = fused_elementwise(dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., hidden] → the same shape, whole on every rank."""
        gate_up = self.gate_up(x)
        if self._native is not None and x.dim() == 2 and not torch.is_grad_enabled():
            inner = self._native.swiglu(gate_up)
        else:
            inner = swiglu(gate_up)
        y: Tensor = self.down(inner)
        return y


def swiglu(gate_up: Tensor) -> Tensor:
    """[.., 2n], gate then up → silu(gate) * up [.., n]; each row's bits are its own."""
    if torch.is_grad_enabled():
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up
    # Several threads cut a large tensor anywhere, and where a cut falls, silu's last bits change: exp is computed
    # another way for what is left over of a vector.
    if gate_up.device.type == "cpu" and gate_up.dim() == 2 and torch.get_num_threads() > 1:
        rows = max(_ONE_THREAD // (gate_up.shape[1] // 2), 1)
        if len(gate_up) > rows:
            return torch.cat([_swiglu_in_place(piece) for piece in torch.split(gate_up, rows)])
    return _swiglu_in_place(gate_up)


def _swiglu_in_place(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)

"""What every parallel layer is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..communication import CommunicationHandler


class TensorParallelLayer(nn.Module):
    """One rank's part of a layer that is split over a group.

    The split is that of Megatron-LM (Shoeybi et al., https://arxiv.org/abs/1909.08053): forward and backward
    together equal the undivided layer. All ranks call the same layers in the same order with the same rows.

    Names are the field's: a "column"-parallel layer splits the output features, a "row"-parallel one the input
    features, although torch stores the weight transposed, as [out, in].
    """

    def __init__(self, handler: CommunicationHandler) -> None:
        super().__init__()
        self.handler = handler

    def pack(self, *, reproducible: bool = True) -> None:
        """Puts the weights into the form that serving on this CPU reads fastest, once and for good.

        The plain weights of linear layers are released; from then on the layer works without gradients only.
        Where the device or the dtype has no such form nothing changes.

        Args:
            reproducible: a row's result must not depend on how many rows are computed with it.
        """
        for child in self.children():
            if isinstance(child, TensorParallelLayer):
                child.pack(reproducible=reproducible)

    @property
    def weight_bytes(self) -> int:
        """Bytes that this layer's weights take now, in whichever form."""
        return _own_bytes(self)


def _own_bytes(module: nn.Module) -> int:
    """Of the module's plain parameters, and of its children's weights in whichever form."""
    own = sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    return own + sum(
        child.weight_bytes if isinstance(child, TensorParallelLayer) else _own_bytes(child)
        for child in module.children()
    )


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Uninitialised: a checkpoint fills it, padding included. On a CPU it takes no memory until then."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device))


def fill(parameter: Tensor | None, values: Tensor) -> None:
    """Copies values into a parameter, which must be there and have that shape."""
    if parameter is None:
        raise ValueError("the layer has no such parameter, or its weights are packed")
    with torch.no_grad():
        parameter.copy_(values)

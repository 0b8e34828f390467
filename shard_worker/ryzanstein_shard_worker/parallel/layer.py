"""What every parallel layer is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ryzanstein.model_plan import UNQUANTIZED

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

    def pack(self, *, reproducible: bool = True, quantization: str = UNQUANTIZED) -> None:
        """Puts the weights into the form that serving on this device reads fastest, once and for good.

        The plain weights of linear layers are released; from then on the layer works without gradients only.
        Where the device or the dtype has no such form nothing changes.

        Args:
            reproducible: a row's result must not depend on how many rows are computed with it.
            quantization: `INT8`: linear layers keep their weights as 8-bit integers, where the device can; `FP8`: as
                8-bit floats.
        """
        for layer in parallel_layers(self):
            layer.pack(reproducible=reproducible, quantization=quantization)

    @property
    def weight_bytes(self) -> int:
        """Bytes that this layer's weights take now, in whichever form."""
        plain = sum(parameter.nbytes for parameter in self.parameters())
        return plain + sum(
            layer.packed_bytes for layer in self.modules() if isinstance(layer, TensorParallelLayer)
        )

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights that this very layer holds, without those of the layers in it."""
        return 0


def parallel_layers(module: nn.Module) -> Iterator[TensorParallelLayer]:
    """The topmost parallel layers inside of a module, found through lists and other containers."""
    for child in module.children():
        if isinstance(child, TensorParallelLayer):
            yield child
        else:
            yield from parallel_layers(child)


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Uninitialised: a checkpoint fills it, padding included. On a CPU it takes no memory until then."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device))


def fill(parameter: Tensor | None, values: Tensor) -> None:
    """Copies values into a parameter, which must be there and have that shape."""
    if parameter is None:
        raise ValueError("the layer has no such parameter, or its weights are packed")
    with torch.no_grad():
        parameter.copy_(values)

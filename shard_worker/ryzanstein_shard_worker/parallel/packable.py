"""A layer around one matrix that can be packed for serving."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ryzanstein.model_plan import FP8, INT8, UNQUANTIZED

from ..communication import CommunicationHandler
from .fp8_weight import Fp8Weight
from .layer import TensorParallelLayer
from .packed_weight import PackedWeight, can_pack
from .quantized_weight import QuantizedWeight, can_quantize
from .tiled_weight import TiledWeight, can_tile


class PackableLinear(TensorParallelLayer):
    """Multiplies by a local weight [N, K], which is plain (and can be trained) or packed (and can't), perhaps in 8
    bits.

    Args:
        handler: of the group.
        weight: this rank's part; None where another module owns it.
        bias: [N].
    """

    def __init__(
        self, handler: CommunicationHandler, weight: nn.Parameter | None, bias: nn.Parameter | None
    ) -> None:
        super().__init__(handler)
        self.weight = weight
        self.bias = bias
        self._packed: PackedWeight | TiledWeight | QuantizedWeight | Fp8Weight | None = None

    @property
    def packed(self) -> bool:
        """Whether the layer serves from a packed weight."""
        return self._packed is not None

    @property
    def reproducible(self) -> bool:
        """Whether a row's result is known not to depend on the other rows of a call."""
        return self._packed is not None and self._packed.reproducible

    @property
    def packed_bytes(self) -> int:
        return 0 if self._packed is None else self._packed.nbytes

    def pack(self, *, reproducible: bool = True, quantization: str = UNQUANTIZED) -> None:
        if self._packed is not None:
            return
        weight = self.trainable_weight()
        if quantization == INT8 and can_quantize(weight.dtype, weight.device):
            self._packed = QuantizedWeight(weight)
            self.weight = None
        elif quantization == FP8:
            self._packed = Fp8Weight(weight)
            self.weight = None
        elif can_tile(weight):
            self._packed = TiledWeight(weight)
            self.weight = None
        elif can_pack(weight.dtype, weight.device):
            self._packed = PackedWeight(weight, reproducible=reproducible)
            self.weight = None

    def plain_weight(self) -> Tensor:
        """The local weight [N, K] with the bits that were loaded; in new memory where only the packed one is
        left. Raises RuntimeError once it is quantised: those bits are gone."""
        if isinstance(self._packed, QuantizedWeight | Fp8Weight):
            raise RuntimeError("the weight was quantised when it was loaded: its own bits are gone")
        return self.trainable_weight() if self._packed is None else self._packed.plain()

    def trainable_weight(self) -> Tensor:
        """The weight as a parameter. Raises RuntimeError once it is packed."""
        if self.weight is None:
            raise RuntimeError(
                "the weight is packed for serving, without gradients: call the layer under torch.inference_mode()"
            )
        return self.weight

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [.., K] → x @ weight.T + bias [.., N], in new memory, without gradients."""
        packed = self._packed
        if packed is not None:
            return packed(x, bias)
        return functional.linear(x, self.trainable_weight(), bias)

"""Linear layers split over the ranks, by output features or by input features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..communication import CommunicationHandler
from .autograd import (
    copy_to_ranks,
    gather_features,
    split_features,
    sum_gradient_over_replicas,
    sum_over_ranks,
)
from .feature_slice import FeatureSlice, even_slice
from .layer import empty_parameter, fill
from .packable import PackableLinear


class ColumnParallelLinear(PackableLinear):
    """Output features are split: x [.., in] → y [.., local rows], or [.., out] gathered.

    The local weight is [rows, in]. Without `gather_output` nothing is exchanged forward; backward the
    gradient of x is summed over the ranks.

    Args:
        in_features, out_features: of the undivided layer.
        bias: of the undivided layer; each rank holds its part.
        handler: of the group.
        dtype, device: of the parameters.
        gather_output: every rank gets all features.
        parts: for projections fused into one, this rank's part of each, one under the other; those that
            several ranks hold come last. None: one projection, split evenly.

    Raises:
        ValueError: the parts don't add up to `out_features`, or fused ones are to be gathered.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        handler: CommunicationHandler,
        dtype: torch.dtype,
        device: torch.device,
        gather_output: bool = False,
        parts: Sequence[FeatureSlice] | None = None,
    ) -> None:
        if parts is None:
            parts = (even_slice(out_features, handler.rank, handler.world_size),)
        if sum(part.size for part in parts) != out_features:
            raise ValueError(f"parts of {[part.size for part in parts]} features don't make {out_features}")
        if gather_output and (len(parts) > 1 or parts[0].replicas > 1):
            raise ValueError("the output of fused or replicated projections can't be gathered")
        rows = sum(part.rows for part in parts)
        weight = empty_parameter(rows, in_features, dtype=dtype, device=device)
        super().__init__(handler, weight, empty_parameter(rows, dtype=dtype, device=device) if bias else None)
        self.in_features = in_features
        self.out_features = out_features
        self.gather_output = gather_output
        self.parts = tuple(parts)
        self._replicas = parts[-1].replicas
        self._first_replicated = sum(part.rows for part in parts if part.replicas == 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            weight = self._shared(self.trainable_weight())
            bias = None if self.bias is None else self._shared(self.bias)
            y = functional.linear(copy_to_ranks(x, self.handler), weight, bias)
        else:
            y = self.multiply(x, self.bias)
        return gather_features(y, self.out_features, self.handler) if self.gather_output else y

    def load(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Takes this rank's part of the undivided [out, in] and [out]; fused projections in their order."""
        fill(self.weight, self._cut(weight))
        if bias is not None:
            fill(self.bias, self._cut(bias))

    def _cut(self, full: Tensor) -> Tensor:
        fused = torch.split(full, [part.size for part in self.parts])
        return torch.cat([part.cut(tensor) for part, tensor in zip(self.parts, fused, strict=True)])

    def _shared(self, parameter: Tensor) -> Tensor:
        return sum_gradient_over_replicas(parameter, self._first_replicated, self._replicas, self.handler)


class RowParallelLinear(PackableLinear):
    """Input features are split: x [.., local columns] → y [.., out], summed over the ranks.

    The local weight is [out, columns]. The bias is whole on every rank and added once, after the sum.

    Args:
        in_features, out_features, bias: of the undivided layer.
        handler: of the group.
        dtype, device: of the parameters.
        split_input: x is whole, [.., in], and each rank takes its part.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        handler: CommunicationHandler,
        dtype: torch.dtype,
        device: torch.device,
        split_input: bool = False,
    ) -> None:
        part = even_slice(in_features, handler.rank, handler.world_size)
        weight = empty_parameter(out_features, part.rows, dtype=dtype, device=device)
        own_bias = empty_parameter(out_features, dtype=dtype, device=device) if bias else None
        super().__init__(handler, weight, own_bias)
        self.in_features = in_features
        self.out_features = out_features
        self.split_input = split_input
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        if self.split_input:
            x = split_features(x, self.handler)
        if torch.is_grad_enabled():
            y = sum_over_ranks(functional.linear(x, self.trainable_weight()), self.handler)
            return y if self.bias is None else y + self.bias
        y = sum_over_ranks(self.multiply(x, None), self.handler)
        return y if self.bias is None else y.add_(self.bias)

    def load(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Takes this rank's part of the undivided [out, in], and [out] as a whole."""
        fill(self.weight, self.part.cut(weight, 1))
        if bias is not None:
            fill(self.bias, bias)

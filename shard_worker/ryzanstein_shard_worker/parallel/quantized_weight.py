"""A linear layer's weight in 8-bit integers, for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from .int8_product import int8_product
from .int8_rows import quantize_rows


class QuantizedWeight:
    """Weight [N, K] as int8 with one scale per output feature; activations are quantised row by row in each call.

    "Dynamic": nothing is calibrated (vector-wise quantisation as in LLM.int8(), Dettmers et al.,
    https://arxiv.org/abs/2208.07339, section 2.1, without its outliers). The integers' sum is exact, so a row's result
    depends neither on the other rows nor on their number.

    Of a rank's part of a weight the scales are of that part: the shard needs nothing of the others, and a scale over
    fewer numbers is never coarser.
    """

    reproducible = True

    def __init__(self, weight: Tensor) -> None:
        """Quantises a copy. Raises ValueError where `can_quantize` says no."""
        if not can_quantize(weight.dtype, weight.device):
            raise ValueError(f"a {weight.dtype} weight on {weight.device} can't be served in 8-bit integers")
        self.out_features, self.in_features = weight.shape
        self._dtype = weight.dtype
        with torch.no_grad():
            integers, scales = quantize_rows(weight.detach())
            self._product, self.nbytes = int8_product(integers, scales, weight.dtype)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [.., K] → about x @ weight.T + bias [.., N], without gradient."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features), bias).view(*x.shape[:-1], self.out_features)
        if x.shape[0] == 0:
            return x.new_empty(0, self.out_features)
        integers, scales = quantize_rows(x)
        return self._product(integers, scales, bias, self._dtype)


def can_quantize(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether such weights can be served in 8-bit integers here. GPUs are another matter: see the guide."""
    return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16, torch.float16)

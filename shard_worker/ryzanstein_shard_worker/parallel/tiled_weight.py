"""A linear layer's weight in the order in which AMX multiplies."""

from __future__ import annotations

import torch
from torch import Tensor

from ..huge_pages import huge_pages
from ..native.linear import native_linear


class TiledWeight:
    """Weight [N, K] in bfloat16, in tiles and in huge pages: a step with few rows costs one read of it, in order.

    A row's result depends neither on the other rows nor on their number: no row is padded and no number of rows
    avoided, as oneDNN's kernels would need.
    """

    reproducible = True

    def __init__(self, weight: Tensor) -> None:
        """Tiles a copy. Raises ValueError where `can_tile` says no."""
        native = native_linear()
        if native is None or not can_tile(weight):
            raise ValueError(
                f"this process can't multiply by a {weight.dtype} weight on {weight.device} in tiles"
            )
        self.out_features, self.in_features = weight.shape
        self.nbytes = native.tiles_bytes(self.out_features, self.in_features)
        tiles = huge_pages.take(self.nbytes)
        native.tile(tiles, weight.detach().contiguous())
        self._native = native
        self._product = native.prepare(tiles, self.out_features, self.in_features)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [.., K] → x @ weight.T + bias [.., N], without gradient."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features), bias).view(*x.shape[:-1], self.out_features)
        return self._product(x, bias)

    def plain(self) -> Tensor:
        """The weight [N, K] as it was, bit by bit, in new memory."""
        weight = torch.empty((self.out_features, self.in_features), dtype=torch.bfloat16)
        self._native.untile(weight, self._product.tiles)
        return weight


def can_tile(weight: Tensor) -> bool:
    """Whether such weights are served from tiles here: in bfloat16, on a CPU with AMX, by one thread."""
    native = native_linear()
    return native is not None and native.supports(weight) and torch.get_num_threads() == 1

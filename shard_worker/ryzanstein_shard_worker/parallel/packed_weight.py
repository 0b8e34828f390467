"""A linear layer's weight in oneDNN's own order."""

from __future__ import annotations

import torch
from torch import Tensor

from .row_counts import row_counts


class PackedWeight:
    """Weight [N, K] reordered once for oneDNN: on CPU half the time of a plain bfloat16 linear at few rows.

    Where `reproducible`, a row's result depends neither on the other rows nor on their number: rows are
    computed in groups whose sizes were found to agree (see `row_counts`).
    """

    def __init__(self, weight: Tensor, *, reproducible: bool) -> None:
        """Packs a copy. Raises ValueError where `can_pack` says no."""
        if not can_pack(weight.dtype, weight.device):
            raise ValueError(f"this machine can't pack a {weight.dtype} weight on {weight.device}")
        self.out_features, self.in_features = weight.shape
        self.reproducible = reproducible
        self._counts = row_counts(
            self.in_features, self.out_features, weight.dtype, reproducible=reproducible
        )
        self._pieces: dict[int, list[tuple[int, int]]] = {}  # by number of rows: found once each
        with torch.no_grad():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), self._counts.packed_for)
        self.nbytes = weight.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [.., K] → x @ weight.T + bias [.., N], without gradient."""
        if x.dim() != 2:
            return self(x.reshape(-1, self.in_features), bias).view(*x.shape[:-1], self.out_features)
        rows = x.shape[0]
        if rows == 0:
            return x.new_empty(0, self.out_features)
        counts = self._counts
        if not counts.allowed and rows >= counts.minimum:  # nearly always
            return self._linear(x, bias)
        pieces = self._pieces.get(rows)
        if pieces is None:
            pieces = self._pieces[rows] = counts.pieces(rows)
        if len(pieces) == 1:
            return self._padded(x, pieces[0][1], bias)
        out = x.new_empty(rows, self.out_features)
        begin = 0
        for taken, computed in pieces:
            end = begin + taken
            out[begin:end] = self._padded(x[begin:end], computed, bias)
            begin = end
        return out

    def plain(self) -> Tensor:
        """The weight [N, K] as it was, bit by bit, in new memory."""
        weight: Tensor = self._packed.to_dense()
        return weight

    def _padded(self, x: Tensor, rows: int, bias: Tensor | None) -> Tensor:
        taken = x.shape[0]
        if taken == rows:
            return self._linear(x, bias)
        padding = x.new_zeros(rows - taken, self.in_features)
        return self._linear(torch.cat([x, padding]), bias)[:taken]

    def _linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")
        return out


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN packs such weights on this machine: half precisions need instructions for them."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())

"""Products of 8-bit integers: by oneDNN where it computes them rightly, by torch in float32 where it does not.

Either way a result is float(sum of the products) * the output feature's scale, in float32, rounded once to the output's
dtype. The sum is exact (32 bits hold 130,000 products), so every way, every number of rows and every CPU gives the
same bits, and no counts of rows have to be found (docs/decisions/0010).

On CPUs without VNNI oneDNN multiplies with instructions that saturate at 16 bits: results are wrong by tens of percent
(oneDNN 3.12, AVX2). So each shape is tried out with the largest integers before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import structlog
import torch
from torch import Tensor

from .int8_rows import LEVELS

log = structlog.get_logger(__name__)

#: x [R, K] int8 → [R, N] of the output's dtype.
Int8Product = Callable[[Tensor], Tensor]

#: Numbers of rows that a shape is tried with: decoding, a crowd, prefill. oneDNN chooses its code by them.
_TRIED_ROWS = (1, 2, 7, 16, 64, 300)
#: More operations than this are not tried: they take 0.1 s.
_MOST_OPERATIONS = 6e10
#: So many products of 127 * 127 have a sum that float32 holds exactly.
_EXACT_COLUMNS = 1024
#: Elements of the weight that the plain product widens at a time: they stay in a core's cache.
_WIDENED_ELEMENTS = 1 << 19


def int8_product(weight: Tensor, scales: Tensor, output_dtype: torch.dtype) -> tuple[Int8Product, int]:
    """The product with a weight int8 [N, K], scales [N], and the bytes that it holds on to."""
    out_features, in_features = weight.shape
    kept_bytes = weight.nbytes + scales.nbytes
    if _onednn_is_right(in_features, out_features, output_dtype, torch.get_num_threads()):
        # Beside the weight in its own order oneDNN keeps a sum per output feature.
        return _OneDnnProduct(weight, scales, output_dtype), kept_bytes + 4 * out_features
    return _PlainProduct(weight, scales, output_dtype), kept_bytes


class _OneDnnProduct:
    def __init__(self, weight: Tensor, scales: Tensor, output_dtype: torch.dtype) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scales = scales
        self._no_zero_points = torch.empty(0, dtype=torch.int32)
        self._dtype = output_dtype

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            x,
            1.0,
            0,
            self._packed,
            self._scales,
            self._no_zero_points,
            None,
            1.0,
            0,
            self._dtype,
            "none",
            [],
            "",
        )
        return out


class _PlainProduct:
    """Exact: in float32, over so few columns at a time that no sum is rounded."""

    def __init__(self, weight: Tensor, scales: Tensor, output_dtype: torch.dtype) -> None:
        self._weight, self._scales, self._dtype = weight, scales, output_dtype

    def __call__(self, x: Tensor) -> Tensor:
        rows, (out_features, in_features) = x.shape[0], self._weight.shape
        values = x.float()
        out = torch.empty((rows, out_features), dtype=self._dtype)
        step = max(1, _WIDENED_ELEMENTS // in_features)
        for low in range(0, out_features, step):
            high = min(low + step, out_features)
            part = self._weight[low:high].float()
            total = torch.zeros((rows, high - low), dtype=torch.int32)
            for begin in range(0, in_features, _EXACT_COLUMNS):
                columns = slice(begin, begin + _EXACT_COLUMNS)
                total += (values[:, columns] @ part[:, columns].t()).to(torch.int32)
            out[:, low:high] = (total.float() * self._scales[low:high]).to(self._dtype)
        return out


@cache
def _onednn_is_right(in_features: int, out_features: int, output_dtype: torch.dtype, threads: int) -> bool:
    """Tries the shape on this CPU, with so many threads; says once for each what it means if it can't be used."""
    problem = _problem(in_features, out_features, output_dtype)
    if problem:
        log.warning(
            "int8_without_instructions",
            reason=problem,
            shape=[out_features, in_features],
            effect="8-bit products are computed in float32: right, but slower than --quantization none",
        )
    return not problem


def _problem(in_features: int, out_features: int, output_dtype: torch.dtype) -> str:
    """Why oneDNN is not used; empty if it computes what it should."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_prepack"):  # type: ignore[no-untyped-call]
        return "this torch has no 8-bit products of oneDNN"
    generator = torch.Generator().manual_seed(0)
    # 64 different output features tell as much as all; among them the largest sums of either sign.
    block = torch.randint(-LEVELS, LEVELS + 1, (64, in_features), generator=generator, dtype=torch.int8)
    block[0], block[1] = LEVELS, -LEVELS
    weight = block.repeat(-(-out_features // 64), 1)[:out_features]
    scales = torch.rand(out_features, generator=generator) + 0.5
    operations = 2 * in_features * out_features
    counts = [rows for rows in _TRIED_ROWS if rows <= 16 or rows * operations <= _MOST_OPERATIONS]
    x = torch.randint(-LEVELS, LEVELS + 1, (counts[-1], in_features), generator=generator, dtype=torch.int8)
    x[::3] = LEVELS
    exact = x.double() @ block.double().t()  # [R, 64]
    sums = exact.float().repeat(1, -(-out_features // 64))[:, :out_features]
    with torch.inference_mode():
        try:
            product = _OneDnnProduct(weight, scales, output_dtype)
            for rows in counts:
                if not torch.equal(product(x[:rows]), (sums[:rows] * scales).to(output_dtype)):
                    return f"oneDNN computes {rows} rows wrongly on this CPU, which has no 8-bit dot products"
        except RuntimeError as error:
            return f"oneDNN can't compute 8-bit products on this CPU: {error}"
    return ""

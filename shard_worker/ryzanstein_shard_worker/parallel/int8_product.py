"""Products of 8-bit integers: in our own AMX tiles, by oneDNN where it computes them rightly, else by torch in float32.

Every way computes float(sum of the products) * the output feature's scale * the row's scale + bias in this order in
float32, and rounds once. The sum is exact (32 bits hold 130,000 products), so every way, every number of rows, every
number of threads and every CPU gives the same bits, and no counts of rows have to be found (docs/decisions/0010).

On CPUs without VNNI oneDNN multiplies with instructions that saturate at 16 bits: results are wrong by tens of percent
(oneDNN 3.12, AVX2). So each shape is tried out with the largest integers before oneDNN is trusted with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import structlog
import torch
from torch import Tensor

from ..huge_pages import huge_pages
from ..native.int8_linear import Int8TilesProduct, native_int8_linear
from .int8_rows import LEVELS, rescale_rows

log = structlog.get_logger(__name__)

#: (x int8 [R, K], scales [R], bias [N] or None, dtype of the bias and of the result) → [R, N].
Int8Product = Callable[[Tensor, Tensor, Tensor | None, torch.dtype], Tensor]

#: Numbers of rows that a shape is tried with: decoding, a crowd, prefill. oneDNN chooses its code by them.
_TRIED_ROWS = (1, 2, 7, 16, 64, 300)
#: More operations than this are not tried: they take 0.1 s.
_MOST_OPERATIONS = 6e10
#: So many products of 127 * 127 have a sum that float32 holds exactly.
_EXACT_COLUMNS = 1024
#: Elements of the weight that the plain product widens at a time: they stay in a core's cache.
_WIDENED_ELEMENTS = 1 << 19


def int8_product(weight: Tensor, scales: Tensor, dtype: torch.dtype) -> tuple[Int8Product, int]:
    """The product with a weight int8 [N, K], scales [N], for results of the dtype, and the bytes that it holds."""
    out_features, in_features = weight.shape
    tiles = native_int8_linear()
    if tiles is not None and tiles.supports(in_features, dtype) and torch.get_num_threads() == 1:
        held = huge_pages.take(tiles.tiles_bytes(out_features, in_features))
        tiles.tile(held, weight)
        product = Int8TilesProduct(tiles, held, scales, (out_features, in_features))
        return product, held.nbytes + scales.nbytes
    kept_bytes = weight.nbytes + scales.nbytes
    if onednn_is_right(in_features, out_features, torch.get_num_threads()):
        # Beside the weight in its own order oneDNN keeps a sum per output feature.
        return OneDnnProduct(weight, scales), kept_bytes + 4 * out_features
    return PlainProduct(weight, scales), kept_bytes


class OneDnnProduct:
    """By oneDNN: for CPUs with VNNI, and for several threads."""

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self._scales = scales
        self._no_zero_points = torch.empty(0, dtype=torch.int32)

    def __call__(self, x: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        # The scale and zero point of x, then the weight; no bias; scale and zero point of the output; nothing after it.
        y = torch.ops.onednn.qlinear_pointwise(
            x,
            1.0,
            0,
            self._packed,
            self._scales,
            self._no_zero_points,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return rescale_rows(y, scales, bias, dtype)


class PlainProduct:
    """By torch: exact in float32, over so few columns at a time that no sum is rounded."""

    def __init__(self, weight: Tensor, scales: Tensor) -> None:
        self._weight, self._scales = weight, scales

    def __call__(self, x: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        rows, (out_features, in_features) = x.shape[0], self._weight.shape
        values = x.float()
        y = torch.empty((rows, out_features))
        step = max(1, _WIDENED_ELEMENTS // in_features)
        for low in range(0, out_features, step):
            high = min(low + step, out_features)
            part = self._weight[low:high].float()
            total = torch.zeros((rows, high - low), dtype=torch.int32)
            for begin in range(0, in_features, _EXACT_COLUMNS):
                columns = slice(begin, begin + _EXACT_COLUMNS)
                total += (values[:, columns] @ part[:, columns].t()).to(torch.int32)
            y[:, low:high] = total.float() * self._scales[low:high]
        return rescale_rows(y, scales, bias, dtype)


@cache
def onednn_is_right(in_features: int, out_features: int, threads: int) -> bool:
    """Tries the shape on this CPU, with torch's present number of threads; says once what it means if it fails."""
    problem = _problem(in_features, out_features)
    if problem:
        log.warning(
            "int8_without_instructions",
            reason=problem,
            shape=[out_features, in_features],
            effect="8-bit products are computed in float32: right, but slower than --quantization none",
        )
    return not problem


def _problem(in_features: int, out_features: int) -> str:
    """Why oneDNN is not used; empty if it computes what it should."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_prepack"):  # type: ignore[no-untyped-call]
        return "this torch has no 8-bit products of oneDNN"
    generator = torch.Generator().manual_seed(0)
    # 64 different output features tell as much as all; among them the largest sums of either sign.
    block = torch.randint(-LEVELS, LEVELS + 1, (64, in_features), generator=generator, dtype=torch.int8)
    block[0], block[1] = LEVELS, -LEVELS
    times = -(-out_features // 64)
    weight = block.repeat(times, 1)[:out_features]
    scales = torch.rand(out_features, generator=generator) + 0.5
    operations = 2 * in_features * out_features
    counts = [rows for rows in _TRIED_ROWS if rows <= 16 or rows * operations <= _MOST_OPERATIONS]
    x = torch.randint(-LEVELS, LEVELS + 1, (counts[-1], in_features), generator=generator, dtype=torch.int8)
    x[::3] = LEVELS
    exact = x.double() @ block.double().t()  # [R, 64]
    expected = exact.float().repeat(1, times)[:, :out_features] * scales
    ones = torch.ones(counts[-1])
    with torch.inference_mode():
        try:
            product = OneDnnProduct(weight, scales)
            for rows in counts:
                if not torch.equal(product(x[:rows], ones[:rows], None, torch.float32), expected[:rows]):
                    return f"oneDNN computes {rows} rows wrongly on this CPU, which has no 8-bit dot products"
        except RuntimeError as error:
            return f"oneDNN can't compute 8-bit products on this CPU: {error}"
    return ""

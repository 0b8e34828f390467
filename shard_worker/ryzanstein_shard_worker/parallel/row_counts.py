"""With how many rows at once a packed weight gives every row the same bits.

oneDNN chooses a kernel, and with it the order in which a row's products are summed, by the number of rows.
Measured with oneDNN 3.x of torch 2.13, one and two threads, six shapes from 64 x 96 to 7168 x 4096:

- float32, float16 and, without AMX, bfloat16: all counts from 2 on agree; 1 differs.
- bfloat16 with AMX tiles: counts fall into classes that depend on the shape, the threads, and on whether the
  weight was packed for one row or for several. Here the classes are found by trying.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# Spaced so that padding to the next one costs little next to reading the weight.
_COUNTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

# A count that takes more operations than this, about 0.1 s, is not tried: that long a start is not worth it.
_MOST_OPERATIONS = 6e10

# Reading the weight once takes about as long as computing so many rows (AMX, one core: 32 rows in the time of 1).
_ROWS_PER_READ = 40

#: What `_reorder_linear_weight` is told; its layouts differ for one row and for more, not among more.
PACKED_FOR_ONE, PACKED_FOR_MANY = 1, 16


@dataclass(frozen=True, slots=True)
class RowCounts:
    """How the rows of a call are grouped.

    - `allowed` empty: any number at once, but at least `minimum`; fewer are padded.
    - otherwise ascending counts, with exactly one of which each piece is computed.
    """

    packed_for: int = PACKED_FOR_MANY
    minimum: int = 1
    allowed: tuple[int, ...] = ()

    def pieces(self, rows: int) -> list[tuple[int, int]]:
        """`rows` → [(rows taken, rows computed), ...], the second at least the first."""
        if not self.allowed:
            return [(rows, max(rows, self.minimum))]
        pieces = []
        while rows:
            below = max((count for count in self.allowed if count <= rows), default=0)
            above = min((count for count in self.allowed if count >= rows), default=0)
            # One more read of the weight costs as much as padding by so many rows.
            if above and (not below or above - rows <= _ROWS_PER_READ):
                pieces.append((rows, above))
                break
            pieces.append((below, below))
            rows -= below
        return pieces


def row_counts(in_features: int, out_features: int, dtype: torch.dtype, *, reproducible: bool) -> RowCounts:
    """The grouping for weights of this shape on this CPU, with torch's present number of threads."""
    if not reproducible:
        return RowCounts()
    if not _uses_tiles(dtype):
        return RowCounts(minimum=2)
    return _try_out(in_features, out_features, dtype, torch.get_num_threads())


def _uses_tiles(dtype: torch.dtype) -> bool:
    """Whether the CPU has AMX for the dtype. Where torch can't tell, as if it had: trying out finds the truth."""
    if dtype == torch.float32:
        return False
    name = "_is_amx_tile_supported" if dtype == torch.bfloat16 else "_is_amx_fp16_supported"
    supported = getattr(torch.cpu, name, None)
    return supported is None or bool(supported())


@cache
def _try_out(in_features: int, out_features: int, dtype: torch.dtype, threads: int) -> RowCounts:
    """Takes as long as 1,800 to 3,600 rows through the layer, and the memory of two such weights at first."""
    operations = 2 * in_features * out_features
    counts = tuple(count for count in _COUNTS if count <= 32 or count * operations <= _MOST_OPERATIONS)
    candidates = []
    with torch.inference_mode():
        for packed_for in (PACKED_FOR_ONE, PACKED_FOR_MANY):
            row, packed = _cancelling_operands(in_features, out_features, dtype, packed_for)
            x = row.repeat(counts[-1], 1)
            results = (
                torch.ops.mkldnn._linear_pointwise(x[:count], packed, None, "none", [], "")
                for count in counts
            )
            candidates += [RowCounts(packed_for, allowed=found) for found in agreeing(results)]
            if candidates[0].allowed == counts:
                break
    return min(candidates, key=_cost)


def agreeing(results: Iterable[Tensor]) -> list[tuple[int, ...]]:
    """Which counts of equal rows gave equal results, wherever in the batch a row stood.

    Args:
        results: [count, N] of products of `count` times the same row, by ascending count.

    Returns:
        Classes of counts. A count whose rows differ among themselves is in none.
    """
    classes: list[tuple[Tensor, list[int]]] = []
    for result in results:
        if not torch.equal(result, result[:1].expand_as(result)):
            continue
        for row, members in classes:
            if torch.equal(row, result[0]):
                members.append(len(result))
                break
        else:
            classes.append((result[0].clone(), [len(result)]))  # not the whole result: it is large
    return [tuple(members) for _, members in classes]


def _cost(counts: RowCounts) -> float:
    """Time per row, in rows, summed over batches from one decoding sequence to a long prompt."""
    return sum(
        sum(_ROWS_PER_READ + computed for _, computed in counts.pieces(rows)) / (_ROWS_PER_READ + rows)
        for rows in _COUNTS
    )


def _cancelling_operands(
    in_features: int, out_features: int, dtype: torch.dtype, packed_for: int
) -> tuple[Tensor, Tensor]:
    """x [1, K] and a packed weight [N, K] whose products cancel: what is left of a sum is its rounding error.

    So two orders of summation differ in nearly every element, where ordinary numbers, rounded to 16 bits,
    would differ in one of ten thousand.
    """
    generator = torch.Generator().manual_seed(0)
    half = in_features // 2
    # 64 different rows tell as much as all, and random numbers take longer than the product.
    block = torch.randn(64, half, generator=generator).to(dtype)
    block = torch.cat([block, block, block.new_zeros(64, in_features - 2 * half)], dim=1)
    weight = block.repeat(-(-out_features // 64), 1)[:out_features]
    x = torch.randn(1, half, generator=generator).to(dtype)
    row = torch.cat([x, -x, x.new_zeros(1, in_features - 2 * half)], dim=1)
    return row, torch.ops.mkldnn._reorder_linear_weight(weight, packed_for)

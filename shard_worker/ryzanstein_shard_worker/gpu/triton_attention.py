"""Attention over pages as one Triton kernel for prompts, chunks of them and decoding, in any mix.

Pages are read where they are: [blocks, block_size, kv_heads, d]. A program computes one tile of a sequence's new
tokens for the query heads that read one key-value head, over all keys that it sees, with the online softmax of
FlashAttention (Dao et al., arXiv:2205.14135). Rows that decode are too few to fill a GPU, so their keys are split over
several programs whose results a second kernel joins (Flash-Decoding,
https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

Nothing here waits for the device, and all launches have the sizes of their arguments: they can be captured.
"""

# Triton reads the kernels' annotations, so they are not postponed; its constants are in capitals everywhere.
# ruff: noqa: N803, N806, PLR0915
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit  # type: ignore[untyped-decorator]
def _store_kernel(  # type: ignore[no-untyped-def]
    keys, values, k, v, slots, k_stride, v_stride, WIDTH: tl.constexpr, PADDED: tl.constexpr
):
    """Row t of k and v [T, kv_heads * d] to token slot slots[t] of a layer's pages."""
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    column = tl.arange(0, PADDED)
    inside = column < WIDTH
    tl.store(keys + slot * WIDTH + column, tl.load(k + row * k_stride + column, mask=inside), mask=inside)
    tl.store(values + slot * WIDTH + column, tl.load(v + row * v_stride + column, mask=inside), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _attention_kernel(  # type: ignore[no-untyped-def]
    out,
    parts,
    sizes,
    q,
    keys,
    values,
    tile_sequence,
    tile_first,
    query_start,
    context_len,
    block_table,
    q_stride,
    table_stride,
    scale,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of TOKENS tokens, the query heads of one kv head, one of SPLITS parts of the keys."""
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    sequence = tl.load(tile_sequence + tile)
    first = tl.load(tile_first + tile)
    begin = tl.load(query_start + sequence)
    count = tl.load(query_start + sequence + 1) - begin
    context = tl.load(context_len + sequence)

    row = tl.arange(0, ROWS)  # token by token, the heads of each together
    token = first + row // GROUP
    head = kv_head * GROUP + row % GROUP
    there = (row < TOKENS * GROUP) & (token < count)
    position = context - count + token
    column = tl.arange(0, PADDED_DIM)
    inside = column < DIM
    q_rows = (begin + token).to(tl.int64)
    queries = tl.load(
        q + q_rows[:, None] * q_stride + head[:, None] * DIM + column[None, :],
        mask=there[:, None] & inside[None, :],
        other=0.0,
    )

    oldest = context - count + first  # position of the tile's first token
    upper = tl.minimum(oldest + TOKENS, context)
    lower = 0
    if WINDOW > 0:
        lower = tl.maximum(oldest - WINDOW + 1, 0)
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(upper - lower, SPLITS), KEYS) * KEYS
        lower = lower + split * share
        upper = tl.minimum(lower + share, upper)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, PADDED_DIM], tl.float32)
    for start in range(lower, upper, KEYS):
        key = start + tl.arange(0, KEYS)
        known = key < upper
        page = tl.load(block_table + sequence * table_stride + key // BLOCK, mask=known, other=0)
        slot = page.to(tl.int64) * BLOCK + key % BLOCK
        offset = (slot * KV_HEADS + kv_head) * DIM
        k_tile = tl.load(
            keys + offset[None, :] + column[:, None], mask=known[None, :] & inside[:, None], other=0.0
        )
        scores = tl.dot(queries, k_tile, input_precision=PRECISION) * (scale * _LOG2_E)
        seen = known[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            seen = seen & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        reference = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: no NaN
        weights = tl.exp2(scores - reference[:, None])
        faded = tl.exp2(highest - reference)
        v_tile = tl.load(
            values + offset[:, None] + column[None, :], mask=known[:, None] & inside[None, :], other=0.0
        )
        total = total * faded + tl.sum(weights, axis=1)
        sums = sums * faded[:, None] + tl.dot(weights.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        highest = higher

    divisor = tl.where(total > 0.0, total, 1.0)
    mean = sums / divisor[:, None]
    if SPLITS == 1:
        tl.store(
            out + (q_rows[:, None] * HEADS + head[:, None]) * DIM + column[None, :],
            mean.to(out.dtype.element_ty),
            mask=there[:, None] & inside[None, :],
        )
    else:
        cell = (tile.to(tl.int64) * HEADS + head) * SPLITS + split
        tl.store(parts + cell[:, None] * DIM + column[None, :], mean, mask=there[:, None] & inside[None, :])
        tl.store(sizes + cell, highest + tl.log2(divisor), mask=there)  # -inf where nothing was seen


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(  # type: ignore[no-untyped-def]
    out,
    parts,
    sizes,
    tile_sequence,
    query_start,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The parts of one row and head, weighted by their sums of exponentials."""
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(query_start + tl.load(tile_sequence + tile)).to(tl.int64)
    cell = (tile.to(tl.int64) * HEADS + head) * SPLITS + tl.arange(0, SPLITS)
    column = tl.arange(0, PADDED_DIM)
    inside = column < DIM
    size = tl.load(sizes + cell)
    weights = tl.exp2(size - tl.max(size, axis=0))
    found = tl.load(parts + cell[:, None] * DIM + column[None, :], mask=inside[None, :], other=0.0)
    mean = tl.sum(found * weights[:, None], axis=0) / tl.sum(weights, axis=0)
    tl.store(out + (row * HEADS + head) * DIM + column, mean.to(out.dtype.element_ty), mask=inside)


def store(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """Writes k, v [T, kv_heads, d] (rows may lie apart) to the token slots [T] of a layer's pages."""
    width = k.shape[1] * k.shape[2]
    grid = (len(slots),)
    padded = triton.next_power_of_2(width)
    _store_kernel[grid](keys, values, k, v, slots, k.stride(0), v.stride(0), WIDTH=width, PADDED=padded)


def attend(
    out: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    tiles: tuple[Tensor, Tensor],
    query_start: Tensor,
    context_len: Tensor,
    block_table: Tensor,
    tokens: int,
    splits: int,
    workspace: tuple[Tensor, Tensor] | None,
    window: int | None,
    scale: float,
) -> None:
    """Attention of the rows that `tiles` name.

    Args:
        out, q: [T, heads, d]; rows of q may lie apart, `out` is dense.
        keys, values: a layer's pages [blocks, block_size, kv_heads, d].
        tiles: sequence [N] and first token [N] (counted in the sequence's new rows) of each tile, int32.
        query_start, context_len, block_table: as in `StepLayout`, on the device.
        tokens: of a tile.
        splits: a power of two; above 1 only with tiles of one token.
        workspace: for splits above 1, [N, heads, splits, d] and [N, heads, splits] float32.
        window: keys that a query sees, itself included; None: all.
        scale: of the scores.
    """
    heads, dim = q.shape[1:]
    block, kv_heads = keys.shape[1:3]
    half = q.dtype != torch.float32
    wide = dim > 128 or not half
    parts, sizes = (out, out) if workspace is None else workspace
    options: dict[str, Any] = {"num_warps": 4, "num_stages": 1 if wide else 2}
    _attention_kernel[(len(tiles[0]), kv_heads, splits)](
        out,
        parts,
        sizes,
        q,
        keys,
        values,
        *tiles,
        query_start,
        context_len,
        block_table,
        q.stride(0),
        block_table.stride(0),
        scale,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        PADDED_DIM=max(16, triton.next_power_of_2(dim)),
        BLOCK=block,
        TOKENS=tokens,
        ROWS=max(16, triton.next_power_of_2(tokens * (heads // kv_heads))),  # the least that tl.dot takes
        KEYS=32 if wide else 64,
        SPLITS=splits,
        WINDOW=window or 0,
        PRECISION="tf32" if half else "ieee",  # of float32 only
        **options,
    )
    if splits > 1:
        assert workspace is not None
        _join_kernel[(len(tiles[0]), heads)](
            out,
            parts,
            sizes,
            tiles[0],
            query_start,
            HEADS=heads,
            DIM=dim,
            PADDED_DIM=max(16, triton.next_power_of_2(dim)),
            SPLITS=splits,
        )

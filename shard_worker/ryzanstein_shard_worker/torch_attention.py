"""Attention over pages in torch operations: for CUDA, and for a CPU host without a C compiler.

All indices are computed on the host once per step, so that no layer waits for the device. Pages are gathered
into contiguous keys and values: rows that decode in few groups of sequences of similar length, longer pieces
one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .kv_pool import KVPool, StepLayout
from .native.attention import Attend

# Bounds the gathered keys and values of a group: 256 MiB each for 8 heads of 128 in bfloat16.
_GATHERED_TOKENS_MAX = 131072


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences with the same number of rows, n, gathered over L tokens; n > 1: only one sequence."""

    rows: Tensor  # [D * n] row numbers
    count: int  # n
    slots: Tensor  # [D, L] token slots of the pool; those past a sequence's end repeat its last token
    positions: Tensor  # [D, n] of the queries
    plain: bool  # a whole prompt: position j is row j


def torch_attend(
    pool: KVPool, layout: StepLayout, *, windows: tuple[int | None, ...], scale: float
) -> Attend:
    """Binds one step's batch, which has passed `layout.check`. `NativeAttention.prepare` in other bits."""
    device, size = pool.device, pool.block_size
    contexts = layout.context_len.long()
    counts = layout.query_start.long().diff()
    table = layout.block_table.long()
    sequences = torch.repeat_interleave(torch.arange(len(counts)), counts)  # [T] of each row
    rows = torch.arange(len(sequences))
    positions = rows - layout.query_start.long()[sequences] + (contexts - counts)[sequences]  # [T]
    new_slots = (table[sequences, positions // size] * size + positions % size).to(device)  # [T]
    groups = []
    for members in _grouped(counts.tolist(), contexts.tolist()):
        chosen = torch.tensor(members)
        n, longest = int(counts[chosen[0]]), int(contexts[chosen].max())
        token = torch.arange(longest).expand(len(members), -1).minimum(contexts[chosen, None] - 1)  # [D, L]
        own = (layout.query_start.long()[chosen, None] + torch.arange(n)).flatten()  # [D * n]
        groups.append(
            _Group(
                rows=own.to(device),
                count=n,
                slots=(table[chosen[:, None], token // size] * size + token % size).to(device),
                positions=positions[own].view(-1, n).to(device),
                plain=n > 1 and n == longest,
            )
        )
    masks = {window: [_mask(group, window) for group in groups] for window in set(windows)}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, kv_heads, dim = q.shape[1], pool.num_kv_heads, pool.head_dim
        expected = ((len(rows), heads, dim), *((len(rows), kv_heads, dim),) * 2)
        if (q.shape, k.shape, v.shape) != expected or heads % kv_heads or q.dtype != pool.dtype:
            raise ValueError(
                f"attention takes q, k, v as {pool.dtype} {expected}, not {q.dtype} "
                f"{[list(tensor.shape) for tensor in (q, k, v)]}"
            )
        keys, values = pool.data[layer].view(2, -1, kv_heads, dim).unbind()  # [blocks * size, kv_heads, d]
        keys.index_copy_(0, new_slots, k)
        values.index_copy_(0, new_slots, v)
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group, mask in zip(groups, masks[windows[layer]], strict=True):
            out[group.rows] = _attend_group(
                group, q[group.rows], keys[group.slots], values[group.slots], mask=mask, scale=scale
            )
        return out

    return attend


def _attend_group(
    group: _Group, q: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None, scale: float
) -> Tensor:
    """q [D * n, heads, d], keys and values [D, L, kv_heads, d] → [D * n, heads, d]."""
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)  # [D, kv_heads, L, d]
    heads, kv_heads, dim = q.shape[1], keys.shape[1], q.shape[2]
    if group.count == 1:
        # The query heads of a kv head stand as its rows: every backend of torch's attention takes that.
        q = q.view(-1, kv_heads, heads // kv_heads, dim)
        assert mask is not None
        mask = mask.expand(-1, -1, heads // kv_heads, -1)
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale).view(-1, heads, dim)
    q = q.transpose(0, 1)[None]  # [1, heads, n, d]
    if mask is not None or q.dtype == torch.float32:
        # Of CUDA's kernels only flash attention lets heads share a key, and it takes neither a mask nor float32. The
        # next best wants as many kv heads as query heads, else every score is stored.
        keys = keys.repeat_interleave(heads // kv_heads, 1)
        values = values.repeat_interleave(heads // kv_heads, 1)
    got = scaled_dot_product_attention(
        q,
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=keys.shape[1] != heads,
    )
    return got[0].transpose(0, 1)


def _grouped(counts: list[int], contexts: list[int]) -> list[list[int]]:
    """Sequences that decode, shortest first, as many together as the bound allows; every other one alone."""
    groups: list[list[int]] = []
    decoding: list[int] = []
    for s in sorted(range(len(counts)), key=lambda s: contexts[s]):
        if counts[s] > 1:
            groups.append([s])
        elif counts[s] == 1:
            if decoding and (len(decoding) + 1) * contexts[s] > _GATHERED_TOKENS_MAX:
                groups.append(decoding)
                decoding = []
            decoding.append(s)
    return [*groups, decoding] if decoding else groups


def _mask(group: _Group, window: int | None) -> Tensor | None:
    """[D, 1, n, L] true where a key is seen; None: causal from the first row on, which kernels do alone."""
    length = group.slots.shape[1]
    if group.plain and (window is None or window >= length):
        return None
    key = torch.arange(length, device=group.slots.device)  # [L]
    position = group.positions[:, None, :, None]  # [D, 1, n, 1]
    seen = key <= position
    return seen if window is None else seen & (key > position - window)

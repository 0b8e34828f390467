"""Attention that keeps nothing: whole sequences at once, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .attention import Attend


def dense_causal_attend(
    lengths: Sequence[int], sliding_window: int | Sequence[int | None] | None = None
) -> Attend:
    """Causal attention of whole sequences that lie one after another in the rows.

    For gradients and as a reference: serving attends over pages instead. Scores are scaled by 1/√d.

    Args:
        lengths: rows of each sequence; their sum is T.
        sliding_window: a query sees itself and the sliding_window - 1 rows before it; None: all before it. One
            for all layers, or one per layer.
    """

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        window = sliding_window[layer] if isinstance(sliding_window, Sequence) else sliding_window
        queries, keys, values = (torch.split(x, list(lengths)) for x in (q, k, v))
        pieces = zip(queries, keys, values, strict=True)
        return torch.cat([_attention(q, k, v, window) for q, k, v in pieces])

    return attend


def _attention(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q [L, heads, d], k and v [L, kv_heads, d] → [L, heads, d]."""
    mask = None if window is None else _window_mask(len(q), window, q.device)
    out = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """[L, L], True where query i sees key j: i - window < j <= i."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)

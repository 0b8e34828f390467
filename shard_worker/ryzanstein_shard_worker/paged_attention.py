"""Attention of one step's batch over the pages of the KV cache, by the kernels that fit the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .kv_pool import KVPool, StepLayout
from .native.attention import Attend
from .torch_attention import torch_attend

__all__ = ["Attend", "KVPool", "StepLayout", "make_attend"]


def make_attend(
    pool: KVPool,
    layout: StepLayout,
    *,
    sliding_window: Callable[[int], int | None] | Sequence[int | None],
    scale: float,
    threads: int = 1,
) -> Attend:
    """What the layers call in one step: writes the new keys and values to their pages, then attends to all.

    Args:
        pool: the pages.
        layout: this step's batch, checked here.
        sliding_window: per layer, as transformers defines it: a key is seen when its position is above the
            query's minus the window. None: all earlier ones.
        scale: of the scores, before the softmax.
        threads: of the native kernel, for steps that are worth it.

    Returns:
        attend(layer, q [T, heads, d], k [T, kv_heads, d], v [T, kv_heads, d]) -> [T, heads, d], in the pool's
        dtype; causal; query head h reads kv head h // (heads / kv_heads). Good for this step and one thread.

    Raises:
        ValueError: the layout leaves the pool, or a window or the number of windows is wrong.
    """
    per_layer = map(sliding_window, range(pool.num_layers)) if callable(sliding_window) else sliding_window
    windows = tuple(per_layer)
    if len(windows) != pool.num_layers:
        raise ValueError(f"{len(windows)} sliding windows were given for {pool.num_layers} layers")
    if any(window is not None and window < 1 for window in windows):
        raise ValueError(f"a sliding window holds 1 token or more, or is None: {windows}")
    layout.check(pool.num_blocks, pool.block_size)
    if pool.kernel is None:
        return torch_attend(pool, layout, windows=windows, scale=scale)
    return pool.kernel.prepare(
        pool.data,
        layout.query_start,
        layout.context_len,
        layout.block_table,
        windows=windows,
        scale=scale,
        threads=threads,
    )

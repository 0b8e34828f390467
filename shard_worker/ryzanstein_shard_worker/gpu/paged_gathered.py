"""`DeviceAttention` by torch's scaled dot product over gathered pages: any device, any dtype, nothing to install."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..kv_pool import KVPool, StepLayout
from ..native.attention import Attend
from ..torch_attention import torch_attend
from .attention import DecodeRows, ModelAttention, Plan, split_pages

#: Whole tables are gathered for a graph, whatever their rows use of them: with longer ones that would take too long.
_MOST_GATHERED_TOKENS = 131072


class GatheredAttention:
    """What is left where nothing faster can be had. A step's indices are copied one by one."""

    name = "torch"

    def __init__(self, pool: KVPool, model: ModelAttention) -> None:
        self._pool, self._model = pool, model

    def prepare(self, layout: StepLayout) -> Plan:
        def bind(there: Sequence[Tensor]) -> Attend:
            return torch_attend(self._pool, layout, windows=self._model.windows, scale=self._model.scale)

        return Plan([], bind)

    def decoding(self, rows: DecodeRows) -> _Decoding | None:
        if rows.block_table.numel() * self._pool.block_size > _MOST_GATHERED_TOKENS:
            return None
        return _Decoding(self._pool, self._model, rows)


class _Decoding:
    """All pages of the rows' tables, with masks."""

    def __init__(self, pool: KVPool, model: ModelAttention, rows: DecodeRows) -> None:
        self._pool, self._model, self._rows = pool, model, rows
        self._within = torch.arange(pool.block_size, dtype=torch.int32, device=pool.device)
        self._token = torch.arange(
            rows.block_table.shape[1] * pool.block_size, dtype=torch.int32, device=pool.device
        )
        self._new = self._slots = self._token  # of the step; set by its first layer
        self._masks: dict[int | None, Tensor] = {}

    def plan(self, context_len: Tensor, block_table: Tensor) -> None:
        pass

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, heads, d], k, v [B, kv_heads, d] → [B, heads, d]."""
        pool, model = self._pool, self._model
        if layer == 0:  # here and not before: a graph that is replayed must read the buffers again
            self._read()
        keys, values = (part.view(-1, pool.num_kv_heads, pool.head_dim) for part in split_pages(pool, layer))
        keys.index_copy_(0, self._new, k)
        values.index_copy_(0, self._new, v)
        heads, dim = q.shape[1:]
        got = scaled_dot_product_attention(
            q.reshape(len(q), pool.num_kv_heads, heads // pool.num_kv_heads, dim),
            keys[self._slots].transpose(1, 2),  # [B, kv_heads, L, d]
            values[self._slots].transpose(1, 2),
            attn_mask=self._masks[model.windows[layer]].expand(-1, -1, heads // pool.num_kv_heads, -1),
            scale=model.scale,
        )
        return got.reshape(len(q), heads, dim)

    def _read(self) -> None:
        rows = self._rows
        self._new = rows.slots.long()
        pages = rows.block_table * self._pool.block_size
        self._slots = (pages[:, :, None] + self._within).flatten(1).long()  # [B, L]
        length = rows.context_len[:, None]
        seen = self._token < length
        # Past a row's end stands what nobody wrote, and zero times NaN is NaN: its first token is read instead.
        self._slots = torch.where(seen, self._slots, self._slots[:, :1])
        for window in set(self._model.windows):
            mask = seen if window is None else seen & (self._token >= length - window)
            self._masks[window] = mask[:, None, None]

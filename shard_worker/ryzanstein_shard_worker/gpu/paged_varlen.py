"""`DeviceAttention` by torch's own attention over sequences of different lengths (`torch.nn.attention.varlen`).

Up to torch 2.11 it knows nothing of pages, and later only of such that hold 256 tokens, so the pages of a step are
gathered first: what is read twice and written once makes it the slowest of the kinds that need no mask. It can't be
captured, because what is gathered grows from step to step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kv_pool import KVPool, StepLayout
from ..native.attention import Attend
from .attention import DecodeRows, ModelAttention, Plan, dense_rows, split_pages, token_slots

#: Bounds the gathered keys and values together; one sequence that is longer is gathered whole.
GATHERED_BYTES = 256 << 20


class VarlenAttention:
    """One rank's attention by `varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale=, window_size=)`, whose
    masks end at the last key (FlashAttention from 2.1 on)."""

    name = "varlen"

    def __init__(self, pool: KVPool, model: ModelAttention, varlen_attn: Callable[..., Any]) -> None:
        """Raises ValueError where it has no kernel for such pages."""
        if pool.dtype == torch.float32 or pool.head_dim % 8 or pool.head_dim > 256:
            raise ValueError(f"it has no kernel for {pool.dtype} and heads of {pool.head_dim}")
        self._pool, self._model, self._attend = pool, model, varlen_attn
        token_bytes = 2 * pool.num_kv_heads * pool.head_dim * pool.dtype.itemsize
        self._most_tokens = max(1, GATHERED_BYTES // token_bytes)

    def prepare(self, layout: StepLayout) -> Plan:
        size = self._pool.block_size
        _, new_slots = token_slots(layout, size)
        counts, contexts = layout.query_start.diff().tolist(), layout.context_len.tolist()
        parts = [new_slots]
        spans: list[tuple[slice, int, int]] = []  # rows, most queries, most keys
        for group in self._groups(counts, contexts):
            begin, end = group
            lengths = layout.context_len[begin:end].long()
            sequence = torch.repeat_interleave(torch.arange(begin, end), lengths)
            starts = lengths.cumsum(0) - lengths
            token = torch.arange(len(sequence)) - starts.repeat_interleave(lengths)
            parts += [
                layout.block_table[sequence, token // size] * size + (token % size).int(),
                layout.query_start[begin : end + 1] - layout.query_start[begin],
                torch.tensor([0, *itertools.accumulate(contexts[begin:end])], dtype=torch.int32),
            ]
            rows = slice(int(layout.query_start[begin]), int(layout.query_start[end]))
            spans.append((rows, max(counts[begin:end]), max(contexts[begin:end])))

        def bind(there: Sequence[Tensor]) -> Attend:
            groups = [(*spans[i], *there[1 + 3 * i : 4 + 3 * i]) for i in range(len(spans))]
            return self._bind(there[0], groups)

        return Plan(parts, bind)

    def decoding(self, rows: DecodeRows) -> None:
        return None

    def _groups(self, counts: list[int], contexts: list[int]) -> list[tuple[int, int]]:
        """Neighbours, as many together as may be gathered at once: [begin, end)."""
        groups: list[tuple[int, int]] = []
        begin = held = 0
        for s, context in enumerate(contexts):
            if s > begin and held + context > self._most_tokens:
                groups.append((begin, s))
                begin, held = s, 0
            held += context
        return [*groups, (begin, len(counts))]

    def _bind(self, new_slots: Tensor, groups: list[Any]) -> Attend:
        pool, model = self._pool, self._model
        target = new_slots.long()

        def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = (
                part.view(-1, pool.num_kv_heads, pool.head_dim) for part in split_pages(pool, layer)
            )
            keys.index_copy_(0, target, k)
            values.index_copy_(0, target, v)
            window = model.windows[layer]
            q = dense_rows(q)
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            for rows, most_q, most_k, slots, begins_q, begins_k in groups:
                out[rows] = self._attend(
                    q[rows],
                    keys.index_select(0, slots),
                    values.index_select(0, slots),
                    begins_q,
                    begins_k,
                    most_q,
                    most_k,
                    scale=model.scale,
                    window_size=(-1 if window is None else window - 1, 0),
                )
            return out

        return attend_layer

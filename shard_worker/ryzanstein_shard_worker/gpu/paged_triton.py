"""`DeviceAttention` by the kernels of `triton_attention`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kv_pool import KVPool, StepLayout
from ..native.attention import Attend
from .attention import DecodeRows, ModelAttention, Plan, dense_rows, split_pages, token_slots
from .triton_attention import attend, store

#: Of rows whose keys are split where the result must not depend on how many rows there are.
_FIXED_SPLITS = 8
_MOST_SPLITS = 32
#: Bounds what the parts of split rows take.
WORKSPACE_BYTES = 64 << 20


class TritonAttention:
    """Reads the pages where they are; every step in two launches for each layer, three where rows decode."""

    name = "triton"

    def __init__(self, pool: KVPool, model: ModelAttention) -> None:
        if pool.kernel is not None:
            raise ValueError("the pages are in the order of the native kernels")
        self._pool = pool
        self._model = model
        group = model.heads // pool.num_kv_heads
        rows = 64 if pool.dtype != torch.float32 else 32
        self._tokens = max(1, rows // group)  # of a tile of a prompt
        self._processors = (
            torch.cuda.get_device_properties(pool.device).multi_processor_count
            if pool.device.type == "cuda"
            else 4
        )

    def prepare(self, layout: StepLayout) -> Plan:
        counts = layout.query_start.diff().tolist()
        single = [s for s, count in enumerate(counts) if count == 1]
        several = [
            (s, first)
            for s, count in enumerate(counts)
            if count > 1
            for first in range(0, count, self._tokens)
        ]
        _, slots = token_slots(layout, self._pool.block_size)
        parts = [
            slots,
            layout.query_start,
            layout.context_len,
            layout.block_table,
            torch.tensor([s for s, _ in several], dtype=torch.int32),
            torch.tensor([first for _, first in several], dtype=torch.int32),
            torch.tensor(single, dtype=torch.int32),
            torch.zeros(len(single), dtype=torch.int32),
        ]

        def bind(there: Sequence[Tensor]) -> Attend:
            new_slots, query_start, context_len, block_table, *tiles = there
            indices = (query_start, context_len, block_table)
            return self._bind(new_slots, indices, (tiles[0], tiles[1]), (tiles[2], tiles[3]))

        return Plan(parts, bind)

    def decoding(self, rows: DecodeRows) -> _Decoding:
        count = len(rows.positions)
        sequence = torch.arange(count + 1, dtype=torch.int32, device=self._pool.device)
        none = sequence[:0]
        indices = (sequence, rows.context_len, rows.block_table)
        tiles = sequence[:count], torch.zeros_like(sequence[:count])
        return _Decoding(self._bind(rows.slots, indices, (none, none), tiles))

    def splits(self, rows: int) -> int:
        """Parts of the keys of each of `rows` that decode: a power of two, so many that all processors have work."""
        if rows == 0:
            return 1
        if self._model.reproducible:
            splits = _FIXED_SPLITS
        else:
            splits = 1
            while splits < _MOST_SPLITS and rows * self._pool.num_kv_heads * splits < 2 * self._processors:
                splits *= 2
        row_bytes = self._model.heads * (self._pool.head_dim + 1) * 4
        while splits > 1 and rows * splits * row_bytes > WORKSPACE_BYTES and not self._model.reproducible:
            splits //= 2
        return splits

    def _bind(
        self,
        slots: Tensor,
        indices: tuple[Tensor, Tensor, Tensor],
        prompts: tuple[Tensor, Tensor],
        singles: tuple[Tensor, Tensor],
    ) -> Attend:
        pool, model = self._pool, self._model
        splits = self.splits(len(singles[0]))
        workspace = None
        if splits > 1:
            cells = (len(singles[0]), model.heads, splits)
            workspace = (
                torch.empty((*cells, pool.head_dim), dtype=torch.float32, device=pool.device),
                torch.empty(cells, dtype=torch.float32, device=pool.device),
            )
        query_start, context_len, block_table = indices

        def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = split_pages(pool, layer)
            q = dense_rows(q)
            store(keys, values, dense_rows(k), dense_rows(v), slots)
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            for tiles, tokens, parts in ((prompts, self._tokens, 1), (singles, 1, splits)):
                if len(tiles[0]):
                    attend(
                        out,
                        q,
                        keys,
                        values,
                        tiles=tiles,
                        query_start=query_start,
                        context_len=context_len,
                        block_table=block_table,
                        tokens=tokens,
                        splits=parts,
                        workspace=workspace if parts > 1 else None,
                        window=model.windows[layer],
                        scale=model.scale,
                    )
            return out

        return attend_layer


class _Decoding:
    """The kernels read the rows' buffers themselves: nothing is left to plan."""

    def __init__(self, attend_rows: Attend) -> None:
        self.attend = attend_rows

    def plan(self, context_len: Tensor, block_table: Tensor) -> None:
        pass

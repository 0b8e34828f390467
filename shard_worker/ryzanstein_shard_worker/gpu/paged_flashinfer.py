"""`DeviceAttention` by FlashInfer (Ye et al., arXiv:2501.01005), where it is installed: it plans once per step.

Keys and values of a layer go in as the pair (keys, values) in the layout that it calls NHD. Prompts, chunks and rows
that decode are one ragged batch for its prefill kernels with causal masks; a step that only decodes uses its decode
kernels, on tensor cores where several query heads share a key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kv_pool import KVPool, StepLayout
from ..native.attention import Attend
from .attention import DecodeRows, ModelAttention, Plan, dense_rows, split_pages, token_slots
from .staging import LastCopy

#: What FlashInfer asks for the parts of split keys.
WORKSPACE_BYTES = 128 << 20
HEAD_DIMS = (64, 128, 256)


class FlashInferAttention:
    """One rank's attention; `library` is the module flashinfer."""

    name = "flashinfer"

    def __init__(self, pool: KVPool, model: ModelAttention, library: Any) -> None:
        """Raises ValueError where the library has no kernels for such pages."""
        if pool.dtype == torch.float32 or pool.head_dim not in HEAD_DIMS:
            raise ValueError(f"it has no kernels for {pool.dtype} and heads of {pool.head_dim}")
        self._pool, self._model, self._library = pool, model, library
        # Zero at first: some of its kernels keep counters there.
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=pool.device)
        self._windows = dict.fromkeys(model.windows)
        self._prefill = {
            window: library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD")
            for window in self._windows
        }
        self._prefill_copied = LastCopy(pool.device)

    def prepare(self, layout: StepLayout) -> Plan:
        _, slots = token_slots(layout, self._pool.block_size)

        def bind(there: Sequence[Tensor]) -> Attend:
            indptr, indices, last = page_lists(layout.context_len, layout.block_table, self._pool.block_size)
            self._prefill_copied.wait()
            for window, wrapper in self._prefill.items():
                wrapper.plan(
                    layout.query_start,
                    indptr,
                    indices.to(self._pool.device, non_blocking=True),
                    last,
                    self._model.heads,
                    self._pool.num_kv_heads,
                    self._pool.head_dim,
                    self._pool.block_size,
                    causal=True,
                    sm_scale=self._model.scale,
                    window_left=-1 if window is None else window - 1,
                    q_data_type=self._pool.dtype,
                    kv_data_type=self._pool.dtype,
                    disable_split_kv=self._model.reproducible,
                )
            self._prefill_copied.record()
            return self._attend(there[0], self._prefill)

        return Plan([slots], bind)

    def decoding(self, rows: DecodeRows) -> _Decoding:
        count, width = rows.block_table.shape
        device = self._pool.device
        wrappers = {
            window: self._library.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace,
                "NHD",
                use_cuda_graph=True,
                use_tensor_cores=self._model.heads >= 4 * self._pool.num_kv_heads,
                paged_kv_indptr_buffer=torch.zeros(count + 1, dtype=torch.int32, device=device),
                paged_kv_indices_buffer=torch.zeros(count * width, dtype=torch.int32, device=device),
                paged_kv_last_page_len_buffer=torch.ones(count, dtype=torch.int32, device=device),
            )
            for window in self._windows
        }
        return _Decoding(self._attend(rows.slots, wrappers), self._planner(wrappers))

    def _planner(self, wrappers: dict[int | None, Any]) -> Callable[[Tensor, Tensor], None]:
        copied = LastCopy(self._pool.device)

        def plan(context_len: Tensor, block_table: Tensor) -> None:
            indptr, indices, last = page_lists(context_len, block_table, self._pool.block_size)
            copied.wait()
            for window, wrapper in wrappers.items():
                wrapper.plan(
                    indptr,
                    indices,
                    last,
                    self._model.heads,
                    self._pool.num_kv_heads,
                    self._pool.head_dim,
                    self._pool.block_size,
                    window_left=-1 if window is None else window - 1,
                    q_data_type=self._pool.dtype,
                    kv_data_type=self._pool.dtype,
                    sm_scale=self._model.scale,
                    disable_split_kv=self._model.reproducible,
                )
            copied.record()

        return plan

    def _attend(self, slots: Tensor, wrappers: dict[int | None, Any]) -> Attend:
        pool, windows = self._pool, self._model.windows
        target = slots

        def attend_layer(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal target
            if layer == 0:  # here and not before: a graph that is replayed must read the slots again
                target = slots.long()
            keys, values = split_pages(pool, layer)
            keys.view(-1, pool.num_kv_heads, pool.head_dim).index_copy_(0, target, k)
            values.view(-1, pool.num_kv_heads, pool.head_dim).index_copy_(0, target, v)
            out: Tensor = wrappers[windows[layer]].run(dense_rows(q).contiguous(), (keys, values))
            return out

        return attend_layer


class _Decoding:
    def __init__(self, attend_rows: Attend, plan: Callable[[Tensor, Tensor], None]) -> None:
        self.attend = attend_rows
        self.plan = plan


def page_lists(context_len: Tensor, block_table: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """→ where each sequence's pages begin [S + 1], the pages of all, the tokens in each one's last page [S]; int32."""
    pages = (context_len + block_size - 1) // block_size
    indptr = torch.zeros(len(pages) + 1, dtype=torch.int32)
    torch.cumsum(pages, 0, out=indptr[1:])
    used = torch.arange(block_table.shape[1]) < pages[:, None]
    return indptr, block_table[used], (context_len - 1) % block_size + 1

"""Runs one batch through this rank's shard: rows in, logits out."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .batch import Batch
from .communication import CommunicationHandler
from .freed_memory import keep_freed_memory
from .kv_cache import BlockAllocator
from .models import Decoder
from .paged_attention import KVPool, StepLayout, make_attend
from .step_device import StepDevice


class Runner:
    """The model of one rank with the pages of its KV cache."""

    def __init__(
        self, model: Decoder, pool: KVPool, *, cpu_threads: int, device: StepDevice | None = None
    ) -> None:
        """`device`: how a GPU's steps are launched; None: as on a CPU."""
        self._model = model
        self._pool = pool
        self._threads = cpu_threads
        self._device = device

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Computes the batch's rows and writes their keys and values.

        Returns:
            [R + P, V] float32: logits of the last row of every slice that samples, in their order; then those of the
            rows that are scored, slice by slice. Good until the next step.
        """
        if self._device is not None and self._device.graphs is not None:
            logits = self._device.graphs.run(batch)
            if logits is not None:
                return logits
        token_ids: list[int] = []
        positions: list[int] = []
        sample_rows: list[int] = []
        scored_rows: list[int] = []
        for piece in batch.slices:
            end = piece.start + piece.count
            token_ids += piece.sequence.tokens[piece.start : end]
            scored_rows += range(len(positions), len(positions) + piece.num_scored)
            positions += range(piece.start, end)
            if piece.samples:
                sample_rows.append(len(positions) - 1)
        # While all decode, every row is wanted, in order.
        wanted = None if len(sample_rows) == len(positions) else sample_rows + scored_rows
        return self._model.logits(self._forward(token_ids, positions, self._layout(batch), wanted))

    @torch.inference_mode()
    def warm_up(self, max_batched_tokens: int) -> None:
        """One prefill and one decode over the scratch block, so that kernels are chosen before a user waits."""
        keep_freed_memory()
        for count in (min(max_batched_tokens, self._pool.block_size), 1):
            layout = StepLayout(
                query_start=torch.tensor([0, count], dtype=torch.int32),
                context_len=torch.tensor([count], dtype=torch.int32),
                block_table=torch.tensor([[BlockAllocator.SCRATCH_BLOCK]], dtype=torch.int32),
            )
            hidden = self._forward([0] * count, list(range(count)), layout)
            self._model.logits(hidden[-1:])

    def enter(self, handler: CommunicationHandler) -> None:
        """The group stands and this rank is warm. All ranks call it together.

        Raises:
            CommunicationError: a rank failed on the way.
        """
        if self._device is not None and self._device.graphs is not None:
            self._device.graphs.enter(handler)

    def _forward(
        self, token_ids: list[int], positions: list[int], layout: StepLayout, rows: list[int] | None = None
    ) -> Tensor:
        """→ hidden of these rows [R, H], or of all [T, H]."""
        if self._device is not None:
            return self._launch(self._device, token_ids, positions, layout, rows)
        attend = make_attend(
            self._pool,
            layout,
            sliding_window=self._model.sliding_windows,
            scale=self._model.attention_scale,
            threads=self._threads,
        )
        hidden: Tensor = self._model(
            torch.tensor(token_ids, dtype=torch.int64),
            torch.tensor(positions, dtype=torch.int64),
            attend,
            None if rows is None else torch.tensor(rows, dtype=torch.int64),
        )
        return hidden

    def _launch(
        self,
        device: StepDevice,
        token_ids: list[int],
        positions: list[int],
        layout: StepLayout,
        rows: list[int] | None,
    ) -> Tensor:
        """On a GPU: all that the host knows in one copy, then all layers, without waiting."""
        layout.check(self._pool.num_blocks, self._pool.block_size)
        plan = device.attention.prepare(layout)
        known = torch.tensor([token_ids, positions], dtype=torch.int32)
        wanted = torch.tensor(rows or [], dtype=torch.int32)
        (ids, places), chosen, *there = device.staging.send([known, wanted, *plan.parts])
        hidden: Tensor = self._model(ids, places, plan.bind(there), None if rows is None else chosen)
        return hidden

    def _layout(self, batch: Batch) -> StepLayout:
        counts = [piece.count for piece in batch.slices]
        tables = [piece.sequence.blocks for piece in batch.slices]
        width = max(len(table) for table in tables)
        padding = [BlockAllocator.SCRATCH_BLOCK] * width
        return StepLayout(
            query_start=torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32),
            context_len=torch.tensor(
                [piece.start + piece.count for piece in batch.slices], dtype=torch.int32
            ),
            block_table=torch.tensor([table + padding[len(table) :] for table in tables], dtype=torch.int32),
        )

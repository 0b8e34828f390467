"""What a GPU still uses is not used again: pools of graphs that are gone, buffers that a copy still reads."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ryzanstein_shard_worker.gpu import paged_flashinfer
from ryzanstein_shard_worker.gpu.attention import DecodeRows, ModelAttention
from ryzanstein_shard_worker.gpu.graph_driver import GraphPool
from ryzanstein_shard_worker.gpu.paged_flashinfer import FlashInferAttention
from ryzanstein_shard_worker.kv_pool import KVPool, StepLayout

CPU = torch.device("cpu")


def test_graphs_share_a_pool_while_one_of_them_is_alive() -> None:
    handles = itertools.count()
    pool = GraphPool(lambda: next(handles))
    first = pool.handle()
    pool.captured()
    assert pool.handle() == first
    pool.captured()
    pool.released()
    assert pool.handle() == first


def test_a_pool_is_not_used_again_after_its_last_graph() -> None:
    handles = itertools.count()
    pool = GraphPool(lambda: next(handles))
    for epoch in range(3):
        assert pool.handle() == epoch
        pool.captured()
        assert pool.handle() == epoch
        pool.captured()
        pool.released()
        pool.released()


def test_a_capture_that_failed_leaves_no_pool_behind() -> None:
    handles = itertools.count()
    pool = GraphPool(lambda: next(handles))
    assert pool.handle() == 0  # and then memory ran out
    assert pool.handle() == 1


class Recorder:
    """Stands for FlashInfer and for the events of a GPU: writes down in which order they are used."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wrapper(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        return SimpleNamespace(plan=lambda *a, **k: self.calls.append("plan"))

    def last_copy(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(
            wait=lambda: self.calls.append("wait"), record=lambda: self.calls.append("record")
        )


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(paged_flashinfer, "LastCopy", recorder.last_copy)
    return recorder


def flashinfer(recorder: Recorder) -> FlashInferAttention:
    """Of a model whose layers have two windows, each with a wrapper of its own."""
    library = SimpleNamespace(
        BatchPrefillWithPagedKVCacheWrapper=recorder.wrapper,
        BatchDecodeWithPagedKVCacheWrapper=recorder.wrapper,
    )
    pool = KVPool(2, 9, 2, 64, dtype=torch.bfloat16, device=CPU)
    return FlashInferAttention(pool, ModelAttention(4, (None, 21), 0.125, False), library)


def test_chunk_after_chunk_waits_for_the_copies_of_the_plans_before(recorder: Recorder) -> None:
    attention = flashinfer(recorder)
    for end in (16, 32, 48):
        layout = StepLayout(
            query_start=torch.tensor([0, 16], dtype=torch.int32),
            context_len=torch.tensor([end], dtype=torch.int32),
            block_table=torch.tensor([[3, 1, 2]], dtype=torch.int32),
        )
        plan = attention.prepare(layout)
        plan.bind(plan.parts)
    assert recorder.calls == ["wait", "plan", "plan", "record"] * 3


def test_step_after_step_of_a_graph_waits_for_the_copies_of_the_plans_before(recorder: Recorder) -> None:
    def numbers(*size: int) -> torch.Tensor:
        return torch.ones(size, dtype=torch.int32)

    rows = DecodeRows(numbers(2), numbers(2), numbers(2), numbers(2, 3))
    decoding = flashinfer(recorder).decoding(rows)
    for _ in range(2):
        decoding.plan(numbers(2), numbers(2, 3))
    assert recorder.calls == ["wait", "plan", "plan", "record"] * 2

"""Packed weights: the same numbers, each row on its own, and the plain weights gone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.parallel import (
    ColumnParallelLinear,
    ParallelEmbedding,
    ParallelMLP,
    RowParallelLinear,
    VocabularyParallelHead,
)
from ryzanstein_shard_worker.parallel.packed_weight import PackedWeight, can_pack
from ryzanstein_shard_worker.parallel.row_counts import RowCounts, agreeing, row_counts
from tests.ranks import run_ranks

from .joining import CPU, F32, random

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def packed(out_features: int, in_features: int, dtype: torch.dtype) -> tuple[Tensor, PackedWeight]:
    if not can_pack(dtype, CPU):
        pytest.skip(f"this CPU packs no {dtype}")
    weight = random(out_features, in_features, scale=in_features**-0.5).to(dtype)
    return weight, PackedWeight(weight, reproducible=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 64), (33, 77), (640, 1280), (320, 3456)])
def test_a_row_has_the_same_bits_in_every_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, linear = packed(*shape, dtype)
    x = random(400, shape[1], seed=1).to(dtype)
    with torch.inference_mode():
        whole = linear(x)
        for rows in (1, 2, 3, 7, 16, 17, 31, 33, 64, 65, 100, 200, 257, 399):
            for start in (0, 1, 150):
                batch = x[start : start + rows]
                assert torch.equal(linear(batch), whole[start : start + len(batch)]), (rows, start)
    reference = functional.linear(x.double(), weight.double())
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(whole.double(), reference, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_weight_can_be_unpacked_bit_by_bit(dtype: torch.dtype) -> None:
    weight, linear = packed(33, 77, dtype)
    assert torch.equal(linear.plain(), weight)


def test_packed_linears_take_any_number_of_dimensions_and_no_rows() -> None:
    weight, linear = packed(8, 16, F32)
    x, bias = random(2, 3, 16), random(8, seed=5)
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, bias), functional.linear(x, weight, bias), atol=1e-5, rtol=0)
        assert linear(x[:0]).shape == (0, 3, 8)
        assert linear(torch.empty(0, 16)).shape == (0, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world", [1, 3])
def test_packed_layers_compute_what_plain_ones_do(world: int, dtype: torch.dtype) -> None:
    """Where the CPU has no packed form for a dtype the layer stays plain, and works all the same."""
    x = random(5, 40, seed=9).to(dtype)

    def on_rank(handler: CommunicationHandler) -> tuple[Tensor, Tensor, bool]:
        mlp = ParallelMLP(40, 50, bias=True, handler=handler, dtype=dtype, device=CPU)
        mlp.gate_up.load(random(100, 40, scale=0.2).to(dtype), random(100, seed=1).to(dtype))
        mlp.down.load(random(40, 50, scale=0.2).to(dtype), random(40, seed=2).to(dtype))
        with torch.inference_mode():
            plain = mlp(x)
            mlp.pack()
            return plain, mlp(x), mlp.gate_up.packed and mlp.down.packed

    for plain, served, is_packed in run_ranks(world, on_rank):
        assert is_packed == can_pack(dtype, CPU)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
        torch.testing.assert_close(served, plain, atol=tolerance, rtol=tolerance)


def test_packing_releases_the_plain_weight_and_keeps_count_of_the_bytes() -> None:
    layer = ColumnParallelLinear(64, 32, bias=True, handler=SingleHandler(), dtype=F32, device=CPU)
    layer.load(random(32, 64), random(32))
    before = layer.weight_bytes
    layer.pack()
    layer.pack()  # once is enough
    assert layer.weight is None
    assert layer.packed
    assert layer.reproducible
    assert layer.weight_bytes == before == 4 * (32 * 64 + 32)
    assert torch.equal(layer.plain_weight(), random(32, 64))


def test_a_tied_head_is_held_twice_when_packed() -> None:
    handler = SingleHandler()
    embedding = ParallelEmbedding(30, 16, handler=handler, dtype=F32, device=CPU)
    embedding.load(random(30, 16))
    head = VocabularyParallelHead(embedding, tied=True, dtype=F32, device=CPU)
    assert head.weight_bytes == 0
    head.pack()
    assert head.weight_bytes == embedding.weight_bytes == 4 * 30 * 16
    with torch.inference_mode():
        expected = functional.linear(random(3, 16, seed=3), embedding.weight)
        torch.testing.assert_close(head(random(3, 16, seed=3)), expected, atol=1e-5, rtol=0)
        assert torch.equal(embedding(torch.tensor([29])), random(30, 16)[29:])


def test_packed_layers_refuse_to_be_trained() -> None:
    layer = RowParallelLinear(16, 8, bias=False, handler=SingleHandler(), dtype=F32, device=CPU)
    layer.load(random(8, 16))
    layer.pack()
    with pytest.raises(RuntimeError, match=r"packed for serving.*inference_mode"):
        layer(random(2, 16))


def test_doubles_are_left_as_they_are() -> None:
    layer = RowParallelLinear(16, 8, bias=False, handler=SingleHandler(), dtype=torch.float64, device=CPU)
    layer.load(random(8, 16).double())
    layer.pack()
    assert not layer.packed
    assert not layer.reproducible
    with pytest.raises(ValueError, match="can't pack"):
        PackedWeight(torch.zeros(2, 2, dtype=torch.float64), reproducible=True)


def test_without_the_promise_rows_are_taken_as_they_come() -> None:
    assert row_counts(8, 8, F32, reproducible=False) == RowCounts()
    assert RowCounts().pieces(1) == [(1, 1)]
    assert row_counts(8, 8, F32, reproducible=True).pieces(1) == [(1, 2)]


@given(
    st.sets(st.integers(1, 300), min_size=1, max_size=12).map(lambda counts: tuple(sorted(counts))),
    st.integers(1, 2000),
)
def test_pieces_cover_all_rows_with_allowed_counts_only(allowed: tuple[int, ...], rows: int) -> None:
    pieces = RowCounts(allowed=allowed).pieces(rows)
    assert sum(taken for taken, _ in pieces) == rows
    assert all(0 < taken <= computed for taken, computed in pieces)
    assert all(computed in allowed for _, computed in pieces)


def test_counts_are_classed_by_the_bits_of_their_rows() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])
    unequal = torch.stack([a, a, b])
    results = [a.expand(1, 2), b.expand(2, 2), unequal, a.expand(4, 2)]
    assert agreeing(results) == [(1, 4), (2,)]

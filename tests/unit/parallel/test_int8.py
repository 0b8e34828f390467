"""Weights and activations in 8-bit integers: every way of computing them gives the same bits, each row on its own."""

from __future__ import annotations

import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ryzanstein.model_plan import INT8
from ryzanstein.model_plan.quantization import int8_bytes
from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.native.int8_linear import Int8TilesProduct, native_int8_linear
from ryzanstein_shard_worker.native.int8_rows import NativeInt8Rows
from ryzanstein_shard_worker.native.library import load_library
from ryzanstein_shard_worker.parallel import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
    VocabularyParallelHead,
)
from ryzanstein_shard_worker.parallel import int8_product as ways
from ryzanstein_shard_worker.parallel import int8_rows as rows_module
from ryzanstein_shard_worker.parallel.int8_product import (
    Int8Product,
    OneDnnProduct,
    PlainProduct,
    int8_product,
    onednn_is_right,
)
from ryzanstein_shard_worker.parallel.int8_rows import (
    quantize_rows,
    quantize_rows_by_torch,
    rescale_rows_by_torch,
)
from ryzanstein_shard_worker.parallel.quantized_weight import QuantizedWeight, can_quantize
from tests.ranks import run_ranks

from .joining import CPU, F32, random

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: (N, K): whole groups of tiles, parts of one, inputs that no tile takes.
SHAPES = [(96, 64), (33, 192), (7, 128), (33, 77), (1, 1), (64, 4160)]


def same(a: Tensor, b: Tensor) -> bool:
    """Bit by bit, but for which NaN."""
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(*_without_nan(a, b))


def _without_nan(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.nan_to_num(7.0), b.nan_to_num(7.0)


def rows_of_all_kinds(size: int, dtype: torch.dtype) -> Tensor:
    x = random(9, size)
    x[1] *= 1000
    x[2] = 0
    x[3] *= 1e-36
    x[4, -1] = torch.nan
    x[5, 0] = torch.inf
    x[6] = 127 * torch.arange(size).remainder(2).sub(0.5)  # ends in ties
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 64, 77, 1280])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_c_library_rounds_as_torch_does(level: int, size: int, dtype: torch.dtype) -> None:
    library = load_library()
    if library is None:
        pytest.skip("the native library was not built: no C compiler")
    native = NativeInt8Rows(library, dtype, level)
    x = rows_of_all_kinds(size, dtype)
    integers, scales = native.quantize(x)
    expected_integers, expected_scales = quantize_rows_by_torch(x)
    assert torch.equal(integers, expected_integers)
    assert same(scales, expected_scales)
    for bias in (None, random(size, seed=1).to(dtype)):
        y = random(9, size, seed=2)
        out = torch.empty(9, size, dtype=dtype)
        native.rescale(out, y, scales, bias)
        assert same(out, rescale_rows_by_torch(y, scales, bias, dtype))


@given(st.integers(1, 40), st.integers(0, 2**31), st.floats(1e-3, 1e6))
@settings(max_examples=30, deadline=None)
def test_a_rounded_row_is_within_half_a_step_of_the_row(size: int, seed: int, scale: float) -> None:
    x = random(3, size, seed=seed, scale=scale)
    integers, scales = quantize_rows(x)
    assert int(integers.abs().amax()) == 127  # the largest value uses all of the range
    error = (integers.double() * scales[:, None].double() - x.double()).abs()
    assert bool((error <= 0.5001 * scales[:, None]).all())


def test_torch_rounds_block_by_block_as_it_rounds_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows_of_all_kinds(77, torch.float16)
    one_by_one = [quantize_rows_by_torch(row[None]) for row in x]
    monkeypatch.setattr(rows_module, "_BLOCK_NUMBERS", 2 * 77 + 1)  # nine rows: blocks of two, and one
    integers, scales = quantize_rows_by_torch(x)
    assert torch.equal(integers, torch.cat([one[0] for one in one_by_one]))
    assert same(scales, torch.cat([one[1] for one in one_by_one]))


def test_zeros_stay_zeros_and_what_is_not_finite_becomes_nan() -> None:
    _, scales = quantize_rows(rows_of_all_kinds(64, F32))
    assert scales[2] == scales[3] == 0
    assert scales.isnan().tolist() == [False, False, False, False, True, True, False, False, False]
    weight = QuantizedWeight(random(8, 64))
    with torch.inference_mode():
        out = weight(rows_of_all_kinds(64, F32))
    assert bool(out[4:6].isnan().all())
    assert not bool(out[:4].isnan().any())


def products(weight: Tensor, scales: Tensor) -> list[Int8Product]:
    out_features, in_features = weight.shape
    ways: list[Int8Product] = [PlainProduct(weight, scales)]
    if onednn_is_right(in_features, out_features, torch.get_num_threads()):
        ways.append(OneDnnProduct(weight, scales))
    if native_int8_linear() is not None and in_features % 64 == 0:
        chosen, _ = int8_product(weight, scales, torch.bfloat16)
        assert isinstance(chosen, Int8TilesProduct)
        ways.append(chosen)
    return ways


@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_of_multiplying_gives_the_same_bits(shape: tuple[int, int]) -> None:
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        weight, weight_scales = quantize_rows(random(*shape, scale=0.02))
        weight[0] = 127
        first, *others = products(weight, weight_scales)
        x, scales = quantize_rows(random(170, shape[1], seed=1))
        x[:2], x[2] = 127, -127  # the largest sums
        scales[5] = torch.nan
        exact = x.double() @ weight.double().t()
        for rows in (1, 2, 15, 16, 17, 33, 64, 65, 170):
            for dtype in (torch.float32, torch.bfloat16):
                for bias in (None, random(shape[0], seed=2).to(dtype)):
                    arguments = (x[:rows].contiguous(), scales[:rows].contiguous(), bias, dtype)
                    expected = first(*arguments)
                    assert all(same(other(*arguments), expected) for other in others), (rows, dtype)
                    value = exact[:rows].float() * weight_scales * scales[:rows, None]
                    assert same(expected, (value if bias is None else value + bias.float()).to(dtype))
    finally:
        torch.set_num_threads(torch_threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(96, 64), (33, 77), (640, 1280)])
def test_a_row_has_the_same_bits_in_every_batch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = random(*shape, scale=shape[1] ** -0.5).to(dtype)
    linear = QuantizedWeight(weight)
    x, bias = random(200, shape[1], seed=1).to(dtype), random(shape[0], seed=2).to(dtype)
    with torch.inference_mode():
        whole = linear(x, bias)
        for rows in (1, 2, 3, 16, 17, 33, 65, 199):
            for start in (0, 1, 150):
                batch = x[start : start + rows]
                assert torch.equal(linear(batch, bias), whole[start : start + len(batch)]), (rows, start)
        assert linear(x[:0]).shape == (0, shape[0])
        assert torch.equal(linear(x.view(2, 100, -1), bias).view(200, -1), whole)
    reference = functional.linear(x.double(), weight.double(), bias.double())
    assert float((whole.double() - reference).norm() / reference.norm()) < 0.02


def test_a_row_has_the_same_bits_where_long_rows_and_many_features_are_cut() -> None:
    weight = random(8192 + 33, 4096 + 64, scale=0.02)  # one more than tiles take at once of each
    linear = QuantizedWeight(weight.to(torch.bfloat16))
    x = random(200, weight.shape[1], seed=1).to(torch.bfloat16)
    with torch.inference_mode():
        whole = linear(x)
        for rows in (slice(0, 1), slice(150, 166), slice(190, 200)):
            assert torch.equal(linear(x[rows]), whole[rows])


def test_a_quantised_layer_counts_its_bytes_as_the_plan_does() -> None:
    layer = ColumnParallelLinear(128, 64, bias=True, handler=SingleHandler(), dtype=F32, device=CPU)
    layer.load(random(64, 128), random(64))
    layer.pack(quantization=INT8)
    assert layer.weight is None
    assert layer.packed
    assert layer.reproducible
    assert layer.weight_bytes - 4 * 64 == pytest.approx(int8_bytes((64, 128)), abs=4 * 64)
    with pytest.raises(RuntimeError, match=r"quantised when it was loaded"):
        layer.plain_weight()
    with pytest.raises(RuntimeError, match=r"packed for serving"):
        layer(random(2, 128))


def test_a_tied_head_is_quantised_and_its_embedding_is_not() -> None:
    embedding = ParallelEmbedding(64, 64, handler=SingleHandler(), dtype=F32, device=CPU)
    embedding.load(random(64, 64))
    head = VocabularyParallelHead(embedding, tied=True, dtype=F32, device=CPU)
    embedding.pack(quantization=INT8)
    head.pack(quantization=INT8)
    with torch.inference_mode():
        assert torch.equal(embedding(torch.tensor([29])), random(64, 64)[29:30])
        logits, expected = (
            head(random(3, 64, seed=3)),
            functional.linear(random(3, 64, seed=3), random(64, 64)),
        )
    assert float((logits - expected).norm() / expected.norm()) < 0.02
    assert head.weight_bytes < 0.4 * embedding.weight_bytes


@pytest.mark.parametrize("world", [2, 3])
def test_split_layers_are_as_near_to_the_undivided_one_as_its_own_rounding(world: int) -> None:
    """A rank's scales are those of its part: other bits than one rank's, and no worse ones."""
    weight, x = random(64, 384, scale=0.05), random(5, 384, seed=1)

    def on_rank(handler: CommunicationHandler) -> Tensor:
        layer = RowParallelLinear(
            384, 64, bias=False, handler=handler, dtype=F32, device=CPU, split_input=True
        )
        layer.load(weight)
        layer.pack(quantization=INT8)
        with torch.inference_mode():
            out: Tensor = layer(x)
            return out

    expected = functional.linear(x, weight)
    (alone,) = run_ranks(1, on_rank)
    for split in run_ranks(world, on_rank):
        assert float((split - expected).norm()) < 1.1 * float((alone - expected).norm())


def test_only_floats_on_cpus_are_quantised() -> None:
    assert can_quantize(torch.bfloat16, CPU)
    assert not can_quantize(torch.bfloat16, torch.device("cuda"))
    with pytest.raises(ValueError, match="can't be served in 8-bit integers"):
        QuantizedWeight(torch.zeros(2, 2, dtype=torch.float64))


class _Saturating(OneDnnProduct):
    """As CPUs without VNNI multiply: sums of two products that end at 16 bits."""

    def __call__(self, x: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return super().__call__(x, scales, bias, dtype).clamp(-32768, 32767)


def test_what_multiplies_wrongly_is_not_used_and_this_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "OneDnnProduct", _Saturating)
    monkeypatch.setattr(ways, "native_int8_linear", lambda: None)
    weight, scales = quantize_rows(random(61, 130))
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            product, held_bytes = int8_product(weight, scales, torch.bfloat16)
    assert isinstance(product, PlainProduct)
    assert held_bytes == 61 * 130 + 4 * 61
    assert [line["event"] for line in lines] == ["int8_without_instructions"]
    assert "wrongly on this CPU" in lines[0]["reason"]


def test_a_torch_without_these_products_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with structlog.testing.capture_logs() as lines:
        assert not onednn_is_right(31, 17, 1)
    assert [(line["event"], line["shape"]) for line in lines] == [("int8_without_instructions", [17, 31])]

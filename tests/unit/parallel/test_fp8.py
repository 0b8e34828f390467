"""Weights and activations in 8-bit floats: how they are rounded, split, filled up and counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ryzanstein.model_plan import FP8
from ryzanstein.model_plan.quantization import fp8_bytes
from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.parallel import (
    ColumnParallelLinear,
    ParallelEmbedding,
    RowParallelLinear,
    VocabularyParallelHead,
    fp8_rows,
    fp8_weight,
)
from ryzanstein_shard_worker.parallel.fp8_rows import E4M3, round_rows
from ryzanstein_shard_worker.parallel.fp8_weight import (
    Fp8Weight,
    defined_product,
    fp8_problem,
    scaled_product,
    tried_product,
)
from tests.ranks import run_ranks

from .joining import CPU, F32, random

BF16 = torch.bfloat16


def every_float() -> Tensor:
    """All finite e4m3 that are not negative, ascending, in float64."""
    values = torch.arange(0x7F, dtype=torch.uint8).view(E4M3).double()
    assert values[-1] == 448
    return values


@given(st.integers(1, 70), st.integers(0, 2**31), st.floats(1e-3, 1e6))
@settings(max_examples=30, deadline=None)
def test_a_value_becomes_the_nearest_of_all_8_bit_floats(size: int, seed: int, scale: float) -> None:
    x = random(3, size, seed=seed, scale=scale)
    floats, scales = round_rows(x)
    assert floats.dtype == E4M3
    assert torch.equal(floats[:, :size].float().abs().amax(dim=1), torch.full((3,), 448.0))
    scaled = (x / scales).double().abs()
    distance = (scaled[..., None] - every_float()).abs().amin(dim=-1)
    chosen = (floats[:, :size].double().abs() - scaled).abs()
    assert bool((chosen <= distance + 1e-4 * scaled).all())
    assert bool((floats[:, size:].float() == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16], ids=str)
def test_a_row_is_rounded_the_same_alone_and_in_small_blocks(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(9, 77).to(dtype)
    floats, scales = round_rows(x)
    monkeypatch.setattr(fp8_rows, "_BLOCK_ELEMENTS", 100)
    again, scales_again = round_rows(x)
    alone, scale_alone = round_rows(x[4:5])
    for a, b in ((floats, again), (floats[4:5], alone)):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    assert torch.equal(scales, scales_again)
    assert torch.equal(scales[4:5], scale_alone)


def test_zeros_stay_zeros_and_what_is_not_finite_becomes_nan() -> None:
    x = random(6, 64)
    x[1], x[2, 5], x[3, 7], x[4] = 0, torch.inf, torch.nan, x[4] * 1e-36
    out = Fp8Weight(random(32, 64))(x)
    assert out.isnan().all(dim=1).tolist() == [False, False, True, True, False, False]
    assert not bool(out[[0, 1, 4, 5]].isnan().any())
    assert bool((out[1] == 0).all())
    assert float(out[4].abs().max()) < 1e-25


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_torch_multiplies_as_it_is_defined(dtype: torch.dtype) -> None:
    """On a CPU where torch has the product; tests/gpu has this on a GPU."""
    problem = tried_product(dtype, CPU, biased=False)
    if "can't multiply" in problem:
        pytest.skip(problem)
    assert problem == ""
    assert tried_product(dtype, CPU, biased=True) == ""
    weight, x = random(48, 320, scale=0.05).to(dtype), random(33, 320, seed=1).to(dtype)
    rounded, scales = round_rows(weight)
    rows, row_scales = round_rows(x)
    given_ = (rows, rounded, row_scales, scales.view(1, -1), random(48, seed=2).to(dtype), dtype)
    torch.testing.assert_close(scaled_product(*given_), defined_product(*given_), rtol=1e-2, atol=1e-2)


def test_a_product_that_is_wrong_or_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> Tensor:
        raise RuntimeError("Only bf16 is supported\nmore")

    for broken, said in (
        (missing, "can't multiply 8-bit floats here: RuntimeError: Only bf16 is supported"),
        (lambda *given: 1.1 * defined_product(*given), "multiplies 8-bit floats wrongly here, by 0.1"),
    ):
        tried_product.cache_clear()
        monkeypatch.setattr(fp8_weight, "scaled_product", broken)
        assert said in tried_product(BF16, CPU, biased=False)
    tried_product.cache_clear()


def test_a_bias_that_the_product_can_not_add_is_added_behind_it() -> None:
    linear, x, bias = Fp8Weight(random(33, 64)), random(5, 64, seed=1), random(33, seed=2)
    together = linear(x, bias)
    linear._adds_bias = False  # as on a device whose product failed with one
    torch.testing.assert_close(linear(x, bias), together)
    assert torch.equal(linear(x), Fp8Weight(random(33, 64))(x))


@pytest.mark.parametrize("shape", [(64, 128), (33, 77), (1, 1), (16, 16)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_is_near_the_one_that_is_not_rounded(shape: tuple[int, int], *, biased: bool) -> None:
    weight, x = random(*shape, scale=shape[1] ** -0.5), random(5, shape[1], seed=1)
    bias = random(shape[0], seed=2) if biased else None
    linear = Fp8Weight(weight)
    got = linear(x, bias)
    expected = functional.linear(x, weight, bias)
    assert float((got - expected).norm() / expected.norm()) < 0.06
    assert got.is_contiguous()
    assert linear(x[:0], bias).shape == (0, shape[0])
    assert torch.equal(linear(x.view(5, 1, -1), bias).view(5, -1), got)
    assert linear.nbytes == fp8_bytes(shape)


def test_a_shard_by_output_features_has_the_bits_of_the_whole() -> None:
    weight, x = random(96, 64, scale=0.05), random(4, 64, seed=1)
    whole = Fp8Weight(weight)(x)
    parts = [Fp8Weight(part)(x) for part in weight.chunk(3)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("world", [2, 3])
def test_a_shard_by_input_features_is_as_near_as_the_whole(world: int) -> None:
    """Its scales are those of its part: never coarser than those of all."""
    weight, x = random(64, 384, scale=0.05), random(5, 384, seed=1)

    def on_rank(handler: CommunicationHandler) -> Tensor:
        layer = RowParallelLinear(
            384, 64, bias=False, handler=handler, dtype=F32, device=CPU, split_input=True
        )
        layer.load(weight)
        layer.pack(quantization=FP8)
        with torch.inference_mode():
            out: Tensor = layer(x)
            return out

    expected = functional.linear(x, weight)
    (alone,) = run_ranks(1, on_rank)
    for split in run_ranks(world, on_rank):
        assert float((split - expected).norm()) < 1.1 * float((alone - expected).norm())
    _, of_all = round_rows(weight)
    assert all(bool((round_rows(part)[1] <= of_all).all()) for part in weight.chunk(world, dim=1))


def test_a_layer_in_8_bit_floats_counts_its_bytes_and_has_lost_its_own_bits() -> None:
    layer = ColumnParallelLinear(130, 70, bias=True, handler=SingleHandler(), dtype=BF16, device=CPU)
    layer.load(random(70, 130).to(BF16), random(70).to(BF16))
    layer.pack(quantization=FP8)
    assert layer.weight is None
    assert layer.weight_bytes == fp8_bytes((70, 130)) + 2 * 70
    assert not layer.reproducible  # a GPU's libraries choose kernels by the number of rows
    with pytest.raises(RuntimeError, match=r"quantised when it was loaded"):
        layer.plain_weight()


def test_a_tied_head_is_rounded_and_its_embedding_is_not() -> None:
    embedding = ParallelEmbedding(70, 64, handler=SingleHandler(), dtype=BF16, device=CPU)
    embedding.load(random(70, 64).to(BF16))
    head = VocabularyParallelHead(embedding, tied=True, dtype=BF16, device=CPU)
    embedding.pack(quantization=FP8)
    head.pack(quantization=FP8)
    hidden = random(3, 64, seed=3).to(BF16)
    with torch.inference_mode():
        assert torch.equal(embedding(torch.tensor([29])), random(70, 64)[29:30].to(BF16))
        logits, expected = head(hidden), functional.linear(hidden.float(), random(70, 64))
    assert logits.shape == (3, 70)
    assert float((logits - expected).norm() / expected.norm()) < 0.06


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        ((8, 6), "compute capability 8.9 or more, and an old GPU has 8.6: serve with --quantization none"),
        ((9, 0), ""),
    ],
)
def test_a_gpu_that_is_too_old_is_refused(
    capability: tuple[int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    monkeypatch.setattr(fp8_weight, "tried_product", lambda dtype, device, biased: "")
    problem = fp8_problem(BF16, torch.device("cuda:0"))
    assert problem.endswith(said)
    assert bool(problem) == bool(said)


def test_cpus_float32_and_products_that_fail_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fp8_weight, "tried_product", lambda dtype, device, biased: "torch can't")
    assert fp8_problem(BF16, CPU) == (
        "fp8 is for workers on GPUs; on CPUs serve with --quantization int8 or none"
    )
    assert fp8_problem(F32, gpu).endswith("give --dtype bfloat16")
    assert fp8_problem(BF16, gpu) == "torch can't: serve with --quantization none, or install another torch"

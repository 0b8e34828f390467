"""The arithmetic inside: conversions to the bit, the exponential to a few units of the last place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ryzanstein_shard_worker.native.attention import Isa, NativeAttention
from ryzanstein_shard_worker.paged_attention import KVPool, StepLayout, make_attend

from .streams import same_bits

HALVES = [torch.bfloat16, torch.float16]


def attend_to(native: NativeAttention, scores: Tensor, values: Tensor) -> Tensor:
    """Sequences of two tokens: softmax(scores [S, 2]) x values [S, 2, d] → [S, d], in the values' type."""
    sequences, _, head_dim = values.shape
    keys = torch.zeros(2 * sequences, 1, head_dim, dtype=values.dtype)
    keys[:, 0, 0] = scores.flatten().to(values.dtype)
    queries = torch.zeros_like(keys)
    queries[:, 0, 0] = 1
    layout = StepLayout(
        query_start=torch.arange(0, 2 * sequences + 1, 2, dtype=torch.int32),
        context_len=torch.full((sequences,), 2, dtype=torch.int32),
        block_table=torch.arange(sequences, dtype=torch.int32)[:, None],
    )
    pool = KVPool(1, sequences, 1, head_dim, dtype=values.dtype, kernel=native)
    attend = make_attend(pool, layout, sliding_window=(None,), scale=1.0)
    return attend(0, queries, keys, values.flatten(0, 1)[:, None]).view(sequences, 2, head_dim)[:, 1]


def every_pattern(dtype: torch.dtype, head_dim: int) -> Tensor:
    """[.., head_dim]: all 65536 of them."""
    return torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype).view(-1, head_dim)


def without_denormals(native: NativeAttention, numbers: Tensor) -> Tensor:
    """As the kernel takes them in: products of pairs of bfloat16 take numbers below the normal ones as 0."""
    if native.level(numbers.dtype, numbers.shape[-1]) <= Isa.AVX512:
        return numbers
    tiny = torch.finfo(numbers.dtype).tiny
    return torch.where(numbers.abs() < tiny, torch.zeros_like(numbers), numbers)


@pytest.mark.parametrize("head_dim", [8, 16, 32])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_number_passes_unchanged_when_it_alone_has_weight(
    native: NativeAttention, dtype: torch.dtype, head_dim: int
) -> None:
    numbers = every_pattern(dtype, head_dim)
    scores = torch.tensor([-1000.0, 0.0]).expand(len(numbers), 2)

    got = attend_to(native, scores, torch.stack([torch.zeros_like(numbers), numbers], 1))

    numbers = without_denormals(native, numbers)
    finite = ~numbers.isnan()
    assert same_bits(got[finite] + 0, numbers[finite] + 0)  # + 0: a sum of zeros has lost the sign of -0
    assert torch.equal(got.isnan(), numbers.isnan())


@pytest.mark.parametrize("head_dim", [8, 16, 32])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_are_rounded_to_nearest_even(
    native: NativeAttention, dtype: torch.dtype, head_dim: int
) -> None:
    numbers = every_pattern(dtype, head_dim)
    others = numbers.flatten()[torch.randperm(65536, generator=torch.Generator().manual_seed(1))]
    others = others.view(-1, head_dim)

    got = attend_to(native, torch.zeros(len(numbers), 2), torch.stack([numbers, others], 1))

    numbers, others = without_denormals(native, numbers), without_denormals(native, others)
    mean = without_denormals(native, ((numbers.float() + others.float()) / 2).to(dtype))
    got = without_denormals(native, got)
    number = ~mean.isnan()
    assert same_bits(got[number] + 0, mean[number] + 0)
    assert torch.equal(got.isnan(), mean.isnan())


def test_the_exponential_is_exact_to_a_few_units(native: NativeAttention) -> None:
    below = torch.cat([torch.linspace(-87, 0, 20001), torch.linspace(-1, 0, 20001)])
    values = torch.zeros(len(below), 2, 8)
    values[:, 0] = 1

    got = attend_to(native, torch.stack([below, torch.zeros_like(below)], 1), values)[:, 0]

    weight = below.double().exp()
    relative = (got.double() / (weight / (1 + weight)) - 1).abs()
    assert (relative / (1 + below.abs())).max() < 3e-7  # the score's own rounding grows with its size


@pytest.mark.parametrize("below", [-88.0, -500.0, -1e30, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_below_the_smallest_number_is_zero(
    native: NativeAttention, below: float, dtype: torch.dtype
) -> None:
    small, large = torch.full((1, 32), 3.0, dtype=dtype), torch.full((1, 32), 5.0, dtype=dtype)

    got = attend_to(native, torch.tensor([[below, 0.0]]), torch.stack([small, large], 1))

    assert torch.equal(got, large)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_all_tokens_share_comes_out_unchanged(
    native: NativeAttention, dtype: torch.dtype
) -> None:
    scores = torch.linspace(-30, 0, 999)[:, None] * torch.tensor([1.0, 0.0])
    values = torch.linspace(-9, 9, 999 * 32).view(999, 1, 32).expand(999, 2, 32).to(dtype)

    got = attend_to(native, scores, values)

    tolerance = 0.0 if dtype == torch.bfloat16 else 3e-7
    torch.testing.assert_close(got, values[:, 0], rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("head_dim", [16, 32])
def test_weights_in_bfloat16_are_as_exact_as_bfloat16_is(native: NativeAttention, head_dim: int) -> None:
    below = torch.linspace(-20, 0, 4001).bfloat16().float()
    values = torch.zeros(len(below), 2, head_dim, dtype=torch.bfloat16)
    values[:, 0] = 1

    got = attend_to(native, torch.stack([below, torch.zeros_like(below)], 1), values)[:, 0]

    weight = below.double().exp()
    assert (got.double() / (weight / (1 + weight)) - 1).abs().max() < 1.01 * 2**-7  # two roundings of 2^-8


@pytest.mark.parametrize("score", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_score_that_is_no_number_is_not_hidden(
    native: NativeAttention, score: float, dtype: torch.dtype
) -> None:
    values = torch.ones(1, 2, 32, dtype=dtype)

    assert attend_to(native, torch.tensor([[score, 0.0]]), values).isnan().all()

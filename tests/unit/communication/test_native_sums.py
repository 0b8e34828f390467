"""The C sum over ranks, at every level of instructions that this CPU has, against torch."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from ryzanstein_shard_worker.communication.sums import ordered_sum
from ryzanstein_shard_worker.native.library import load_library
from ryzanstein_shard_worker.native.shared_memory import DTYPES

pytestmark = pytest.mark.skipif(load_library() is None, reason="the native library is not built here")

LEVELS = (0, 1, 2)
HALVES = (torch.bfloat16, torch.float16)


def native_sum(rows: Tensor, level: int) -> Tensor:
    """rows [world, n] → [n]"""
    library = load_library()
    assert library is not None
    out = torch.empty_like(rows[0])
    pointers = (ctypes.c_void_p * len(rows))(*[row.data_ptr() for row in rows])
    library.rz_rank_sum_at(
        ctypes.c_void_p(out.data_ptr()),
        pointers,
        ctypes.c_uint32(len(rows)),
        ctypes.c_size_t(rows.shape[1]),
        ctypes.c_int32(DTYPES[rows.dtype]),
        ctypes.c_int32(level),
    )
    return out


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Bit for bit; NaN is NaN, whatever its bits."""
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())
    numbers = ~expected.isnan()
    assert torch.equal(actual.signbit()[numbers], expected.signbit()[numbers])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_read_and_written_without_loss(dtype: torch.dtype, level: int) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)  # [65536]
    assert_same(native_sum(every[None], level), every)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("world", [2, 3, 8])
def test_sums_of_arbitrary_bit_patterns_round_as_torch_does(
    dtype: torch.dtype, level: int, world: int
) -> None:
    generator = torch.Generator().manual_seed(world)
    bits = torch.randint(-(2**15), 2**15, (world, 100_003), generator=generator, dtype=torch.int32)
    rows = bits.to(torch.int16).view(dtype)
    expected = torch.empty_like(rows[0])
    ordered_sum(rows, expected)
    assert_same(native_sum(rows, level), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", HALVES)
def test_ties_and_denormals_of_close_values_round_as_torch_does(dtype: torch.dtype, level: int) -> None:
    """Sums of values of like size end between two representable ones far more often than arbitrary ones."""
    generator = torch.Generator().manual_seed(5)
    for scale in (1e-7, 1e-5, 1.0, 3e4):
        rows = (torch.randn((2, 50_000), generator=generator) * scale).to(dtype)
        expected = torch.empty_like(rows[0])
        ordered_sum(rows, expected)
        assert_same(native_sum(rows, level), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
@pytest.mark.parametrize("count", [1, 15, 511, 513, 10_007])
def test_wide_types_are_summed_in_rank_order(dtype: torch.dtype, level: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for world in (1, 2, 5):
        rows = (torch.randn((world, count), generator=generator, dtype=torch.float64) * 1e6).to(dtype)
        expected = torch.empty_like(rows[0])
        ordered_sum(rows, expected)
        assert torch.equal(native_sum(rows, level), expected)

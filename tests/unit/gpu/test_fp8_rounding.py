"""Rounding to 8-bit floats by Triton, and what happens where the kernel is missing or wrong."""

from __future__ import annotations

import importlib.util

import pytest
import structlog
import torch
from torch import Tensor

from ryzanstein_shard_worker.gpu.fp8_rounding import device_rounding, worst_error
from ryzanstein_shard_worker.parallel.fp8_rows import round_rows_by_torch

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_torch_rounds_to_the_nearest(dtype: torch.dtype) -> None:
    assert worst_error(round_rows_by_torch, dtype, CPU) <= 1.001


def test_what_rounds_otherwise_is_noticed() -> None:
    def cut_off(x: Tensor) -> tuple[Tensor, Tensor]:
        floats, scales = round_rows_by_torch(x)
        return (0.9 * floats.float()).to(floats.dtype), scales

    def without_nan(x: Tensor) -> tuple[Tensor, Tensor]:
        floats, scales = round_rows_by_torch(x)
        return floats, scales.nan_to_num(1.0)

    assert worst_error(cut_off, torch.bfloat16, CPU) > 1.001
    assert worst_error(without_nan, torch.bfloat16, CPU) == torch.inf


def test_without_triton_torch_rounds_and_the_log_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    device_rounding.cache_clear()
    with structlog.testing.capture_logs() as lines:
        assert device_rounding(torch.bfloat16, CPU) is None
    device_rounding.cache_clear()
    assert [(line["event"], line["kernel"], line["reason"]) for line in lines] == [
        ("fp8_rounding_chosen", "torch", "Triton is not installed")
    ]


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [1, 64, 77, 1280])
def test_triton_rounds_as_torch_does(columns: int, dtype: torch.dtype) -> None:
    from ryzanstein_shard_worker.gpu.triton_fp8 import round_rows_by_triton

    x = torch.randn((9, columns), generator=torch.Generator().manual_seed(1))
    x[1], x[2, 0], x[3, -1] = 0, torch.inf, torch.nan
    x = x.to(dtype)
    floats, scales = round_rows_by_triton(x)
    expected, expected_scales = round_rows_by_torch(x)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0, equal_nan=True)
    finite = [0, 1, 4, 5, 6, 7, 8]
    got, wanted = floats[finite].float(), expected[finite].float()
    # The interpreter of Triton 3.9 rounds ties up, and loses the carry of what is rounded up to a power of two.
    scaled = (x[finite].float() / scales[finite]).double()
    ties = torch.zeros(got.shape, dtype=torch.bool)
    ties[:, :columns] = ((got + wanted)[:, :columns].double() / 2 - scaled).abs() < 1e-4 * scaled.abs()
    carried = (got * 2 == wanted) & (wanted.abs().log2() % 1 == 0)
    assert bool((ties | carried | (got == wanted)).all())
    assert float((got != wanted).float().mean()) < 0.1


@pytest.mark.usefixtures("triton")
def test_triton_takes_rows_that_lie_apart() -> None:
    from ryzanstein_shard_worker.gpu.triton_fp8 import round_rows_by_triton

    wide = torch.randn((5, 96), generator=torch.Generator().manual_seed(2))
    apart, scales = round_rows_by_triton(wide[:, 16:64])
    together, same_scales = round_rows_by_triton(wide[:, 16:64].contiguous())
    assert torch.equal(apart.view(torch.uint8), together.view(torch.uint8))
    assert torch.equal(scales, same_scales)
    assert round_rows_by_triton(wide[:0])[0].shape == (0, 96)

"""Every kind of attention, and the kernels around it, against their definitions on this GPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch

from ryzanstein_shard_worker.gpu.attention import ModelAttention
from ryzanstein_shard_worker.gpu.choice import CANDIDATES, choose_attention, first_fitting
from ryzanstein_shard_worker.gpu.elementwise import device_elementwise, worst_error
from ryzanstein_shard_worker.kv_pool import KVPool
from tests.unit.gpu.test_choice import key

SHAPES = [
    {"heads": 32, "kv_heads": 8, "head_dim": 128, "dtype": torch.bfloat16, "scale": 128**-0.5},
    {"heads": 8, "kv_heads": 8, "head_dim": 64, "dtype": torch.float16, "scale": 0.125},
    {"heads": 8, "kv_heads": 2, "head_dim": 64, "dtype": torch.float32, "scale": 0.125},
    {"heads": 16, "kv_heads": 2, "head_dim": 256, "dtype": torch.bfloat16, "scale": 0.0625},
]
#: What each kind has kernels for.
HALF_ONLY = ("flashinfer", "varlen")


@pytest.mark.parametrize("reproducible", [True, False], ids=["reproducible", "fastest"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape['dtype']} {shape['head_dim']}")
@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_a_kind_gives_the_right_numbers(
    candidate: object, shape: dict[str, object], cuda: torch.device, *, reproducible: bool
) -> None:
    name = candidate.name  # type: ignore[attr-defined]
    if name == "flashinfer" and importlib.util.find_spec("flashinfer") is None:
        pytest.skip("flashinfer is not installed")
    if name in HALF_ONLY and shape["dtype"] == torch.float32:
        pytest.skip(f"{name} has no kernels for float32")
    found = first_fitting((candidate,), key(device=cuda, reproducible=reproducible, **shape))  # type: ignore[arg-type]
    assert found[0] == name


def test_what_is_chosen_for_a_model_of_eight_billion_parameters(
    cuda: torch.device, record_property: Callable[[str, object], None]
) -> None:
    pool = KVPool(1, 9, 8, 128, dtype=torch.bfloat16, device=cuda)
    chosen = choose_attention(pool, ModelAttention(32, (None,), 128**-0.5, False))
    record_property("attention", chosen.name)
    assert chosen.name in ("flashinfer", "triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_norms_rotations_and_the_gate_are_triton_kernels(cuda: torch.device, dtype: torch.dtype) -> None:
    kernels = device_elementwise(dtype, cuda)
    assert kernels is not None
    assert (
        worst_error(kernels, dtype, cuda)
        <= {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}[dtype]
    )

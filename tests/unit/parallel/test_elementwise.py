"""The native norms, rotations and gates compute what torch does, every row on its own, on every kind of CPU alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ryzanstein_shard_worker.native.elementwise import DTYPES, NativeElementwise, native_elementwise
from ryzanstein_shard_worker.native.library import load_library
from ryzanstein_shard_worker.parallel import RMSNorm, RotaryEmbedding
from ryzanstein_shard_worker.parallel.rotary import rotate

from .joining import CPU, random

#: Largest relative difference to float64: a few roundings in float32, or the one to bfloat16.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
SIZES = [1, 7, 64, 77, 1280]


@pytest.fixture(params=list(DTYPES), ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture
def levels(dtype: torch.dtype) -> list[NativeElementwise]:
    """The lowest level first. A level that the CPU lacks runs as the highest that it has."""
    library = load_library()
    if library is None:
        pytest.skip("the native library was not built: no C compiler")
    return [NativeElementwise(library, dtype, level) for level in (0, 1, 2)]


def agreed(results: list[Tensor]) -> Tensor:
    assert all(torch.equal(results[0], result) for result in results)
    return results[0]


def close(result: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[result.dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
def test_the_norm(levels: list[NativeElementwise], dtype: torch.dtype, size: int) -> None:
    x, weight = random(9, size).to(dtype), random(size, seed=1).to(dtype)
    normed = agreed([native.rms_norm(x, weight, 1e-5) for native in levels])
    close(normed, functional.rms_norm(x.double(), (size,), weight.double(), 1e-5))
    alone = torch.cat([levels[2].rms_norm(row[None].contiguous(), weight, 1e-5) for row in x])
    assert torch.equal(alone, normed)


@pytest.mark.parametrize("size", SIZES)
def test_the_norm_of_a_sum_is_that_of_the_rounded_sum(
    levels: list[NativeElementwise], dtype: torch.dtype, size: int
) -> None:
    x, delta = random(9, size).to(dtype), random(9, size, seed=1).to(dtype)
    weight = random(size, seed=2).to(dtype)
    for native in levels:
        total, normed = native.add_rms_norm(x, delta, weight, 1e-5)
        assert torch.equal(total, x + delta)
        assert torch.equal(normed, native.rms_norm(total, weight, 1e-5))


@pytest.mark.parametrize("size", SIZES)
def test_the_gate(levels: list[NativeElementwise], dtype: torch.dtype, size: int) -> None:
    gate_up = (3 * random(9, 2 * size)).to(dtype)
    gated = agreed([native.swiglu(gate_up) for native in levels])
    gate, up = gate_up.double().chunk(2, dim=1)
    close(gated, functional.silu(gate) * up)
    assert torch.equal(torch.cat([levels[2].swiglu(row[None].contiguous()) for row in gate_up]), gated)


def test_the_gate_over_the_whole_range_of_numbers(
    levels: list[NativeElementwise], dtype: torch.dtype
) -> None:
    magnitudes = torch.logspace(-30, 30, 1000, dtype=torch.float64)
    gate = torch.cat([-magnitudes.flip(0), torch.zeros(1), magnitudes]).to(dtype)
    gated = agreed([native.swiglu(torch.cat([gate, torch.ones_like(gate)])[None]) for native in levels])
    close(gated[0], functional.silu(gate.double()))
    nothing = torch.tensor([[float("nan"), float("inf"), 1.0, 1.0]], dtype=dtype)
    gated = levels[2].swiglu(nothing)
    assert gated[0, 0].isnan()
    assert gated[0, 1].isposinf()


@pytest.mark.parametrize("dim", [2, 16, 64, 128])
@pytest.mark.parametrize("normalised", [False, True])
def test_the_rotation_of_queries_and_keys_in_place(
    levels: list[NativeElementwise], dtype: torch.dtype, dim: int, normalised: bool
) -> None:
    queries, keys, rows = 3, 2, 5
    rotary = RotaryEmbedding(dim, theta=1e4, scaling=None, max_positions=99, dtype=dtype, device=CPU)
    cos, sin = rotary(torch.arange(0, 90, 18))
    norms = (random(dim, seed=3).to(dtype), random(dim, seed=4).to(dtype)) if normalised else None
    heads = random(rows, queries + 2 * keys, dim).to(dtype)

    def turned(native: NativeElementwise, given: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        given = given.clone()
        native.rotate_heads(given, (queries, keys), cos, sin, norms, 1e-6)
        return given

    result = agreed([turned(native, heads, cos, sin) for native in levels])
    assert torch.equal(result[:, queries + keys :], heads[:, queries + keys :])
    expected = heads[:, : queries + keys].double()
    if norms is not None:
        weights = torch.cat([norms[0].expand(queries, dim), norms[1].expand(keys, dim)])
        expected = functional.rms_norm(expected, (dim,), None, 1e-6) * weights
        expected = expected.to(dtype).double()
    rotation = type(rotary(torch.tensor([0])))(cos.double(), sin.double())
    torch.testing.assert_close(
        result[:, : queries + keys].double(),
        rotate(expected, rotation),
        rtol=TOLERANCE[dtype],
        atol=4 * TOLERANCE[dtype],
    )
    for row in range(rows):
        alone = turned(levels[2], heads[row : row + 1], cos[row : row + 1], sin[row : row + 1])
        assert torch.equal(alone[0], result[row])


def test_a_norm_is_the_same_with_and_without_gradients() -> None:
    norm = RMSNorm(77, eps=1e-5, dtype=torch.float32, device=CPU)
    with torch.no_grad():
        norm.weight.copy_(random(77, seed=1))
    x, delta = random(4, 77), random(4, 77, seed=2)
    trained = norm(x + delta)
    with torch.inference_mode():
        total, served = norm.after_adding(x, delta)
    assert torch.equal(total, x + delta)
    torch.testing.assert_close(served, trained, rtol=1e-6, atol=1e-6)


def test_where_there_is_no_native_form_torch_does_it() -> None:
    assert native_elementwise(torch.float16, CPU) is None
    assert native_elementwise(torch.float32, torch.device("meta")) is None

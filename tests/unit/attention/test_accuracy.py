"""Both ways of attention compute the definition."""

from __future__ import annotations

import pytest
import torch

from ryzanstein_shard_worker.native.attention import NativeAttention

from .streams import Cache, Shape, Stream, plain_attention

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
STEPS = [[150, 3], [1, 0], [40, 80], [1, 1], [1, 1], [7, 15]]
LENGTHS = [200, 100]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(20, 4, 64), (8, 2, 128), (3, 3, 80), (2, 1, 96), (6, 2, 32), (4, 1, 16), (2, 1, 256), (1, 1, 8)],
)
def test_native_follows_the_definition(
    native: NativeAttention, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    _assert_close_to_definition(native, Shape(heads, kv_heads, head_dim, dtype))


@pytest.mark.parametrize("window", [1, 16, 70, 128, 500])
def test_native_sees_exactly_the_window(native: NativeAttention, window: int) -> None:
    _assert_close_to_definition(native, Shape(4, 2, 64, window=window))


@pytest.mark.parametrize("window", [None, 1, 16, 70, 128, 500])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_torch_follows_the_definition(dtype: torch.dtype, window: int | None) -> None:
    _assert_close_to_definition(None, Shape(6, 2, 64, dtype, window))


@pytest.mark.parametrize("head_dim", [24, 72, 5])
def test_torch_takes_any_head_size(head_dim: int) -> None:
    _assert_close_to_definition(None, Shape(6, 2, head_dim))


def test_native_and_torch_agree_in_float32(native: NativeAttention) -> None:
    shape = Shape(20, 4, 64)
    streams = [Stream.random(length, shape, length) for length in LENGTHS]

    ours = Cache(shape, streams, kernel=native).run(STEPS)
    torchs = Cache(shape, streams, kernel=None).run(STEPS)

    for one, other in zip(ours, torchs, strict=True):
        assert (one - other).abs().max() < 1e-5


def test_torch_decodes_many_sequences_in_groups_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ryzanstein_shard_worker.torch_attention._GATHERED_TOKENS_MAX", 64)
    shape = Shape(4, 2, 16)
    streams = [Stream.random(length, shape, length) for length in (40, 3, 17, 90, 5)]

    got = Cache(shape, streams, kernel=None).run([[39, 2, 16, 89, 4], [1, 1, 1, 1, 1]])

    for stream, output in zip(streams, got, strict=True):
        assert (output - plain_attention(shape, stream)).abs().max() < 3e-6


def test_garbage_of_unused_slots_does_not_reach_torch(kernel: NativeAttention | None) -> None:
    shape = Shape(4, 2, 64)
    streams = [Stream.random(length, shape, length) for length in (37, 70)]

    got = Cache(shape, streams, kernel=kernel, garbage=float("nan")).run([[20, 5], [1, 1], [16, 64]])

    for stream, output in zip(streams, got, strict=True):
        assert (output - plain_attention(shape, stream)).abs().max() < 3e-6


def _assert_close_to_definition(kernel: NativeAttention | None, shape: Shape) -> None:
    streams = [Stream.random(length, shape, length) for length in LENGTHS]
    for stream, got in zip(streams, Cache(shape, streams, kernel=kernel).run(STEPS), strict=True):
        assert got.dtype == shape.dtype
        assert (got.double() - plain_attention(shape, stream)).abs().max() < TOLERANCE[shape.dtype]

"""A result's bits depend on its own sequence, and on nothing else."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ryzanstein_shard_worker.native.attention import NativeAttention

from .streams import Cache, Shape, Stream, plain_attention, same_bits, token_by_token

SHAPES = st.builds(
    lambda heads, head_dim, dtype, window: Shape(heads[0], heads[1], head_dim, dtype, window),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (5, 1), (7, 1), (16, 2), (13, 1), (50, 1)]),
    head_dim=st.sampled_from([8, 16, 32, 40, 64, 80, 96, 128, 256]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    window=st.sampled_from([None, None, 1, 5, 16, 40, 64, 100]),
)
LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=3)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def random_steps(lengths: list[int], chance: random.Random) -> list[list[int]]:
    """Splits sequences into steps: some wait, some decode, some take a piece of any size."""
    left, steps = list(lengths), []
    while any(left):
        counts = [min(n, chance.choice([0, 1, 1, 2, 7, 16, 33, 64, 90, 200])) for n in left]
        left = [n - count for n, count in zip(left, counts, strict=True)]
        steps.append(counts)
    return steps


@relaxed
@given(shape=SHAPES, lengths=LENGTHS, seed=st.integers(0, 2**32), threads=st.sampled_from([1, 1, 3]))
def test_any_split_in_any_batch_gives_the_bits_of_decoding_alone(
    native: NativeAttention, shape: Shape, lengths: list[int], seed: int, threads: int
) -> None:
    chance = random.Random(seed)
    streams = [Stream.random(length, shape, chance.getrandbits(32)) for length in lengths]
    cache = Cache(
        shape,
        streams,
        kernel=native,
        garbage=chance.choice([float("nan"), 7.0]),
        threads=threads,
        shuffle=chance,
    )

    batched = cache.run(random_steps(lengths, chance))

    for stream, got in zip(streams, batched, strict=True):
        assert same_bits(got, token_by_token(shape, stream, native))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 70])
def test_long_context_keeps_its_bits_over_many_chunks(
    native: NativeAttention, dtype: torch.dtype, window: int | None
) -> None:
    shape = Shape(5, 1, 64, dtype, window)
    stream = Stream.random(700, shape, seed=1)

    whole = Cache(shape, [stream], kernel=native).run([[700]])[0]
    pieces = Cache(shape, [stream], kernel=native).run([[301], [1], [250], [1], [147]])[0]

    assert same_bits(whole, pieces)


def test_nan_of_a_neighbour_stays_with_the_neighbour(native: NativeAttention) -> None:
    shape = Shape(4, 2, 64, torch.bfloat16)
    sound, broken = (Stream.random(90, shape, seed) for seed in (1, 2))
    for tensor in (broken.q, broken.k, broken.v):
        tensor.fill_(float("nan"))

    got, poisoned = Cache(shape, [sound, broken], kernel=native).run([[60, 20], [1, 1], [29, 69]])

    assert same_bits(got, token_by_token(shape, sound, native))
    assert poisoned.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_of_a_later_token_stays_with_the_later_tokens(
    native: NativeAttention, dtype: torch.dtype
) -> None:
    shape = Shape(4, 2, 64, dtype)
    stream = Stream.random(90, shape, seed=3)
    sound = token_by_token(shape, stream, native)
    stream.k[45], stream.v[45] = float("nan"), float("inf")

    got = Cache(shape, [stream], kernel=native).run([[90]])[0]

    assert same_bits(got[:45], sound[:45])
    assert got[45:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 100])
def test_nan_of_a_token_that_left_the_window_is_gone(
    native: NativeAttention, rows: int, dtype: torch.dtype
) -> None:
    shape = Shape(4, 2, 64, dtype, window=20)
    stream = Stream.random(100, shape, seed=4)
    sound = token_by_token(shape, stream, native)
    stream.k[45], stream.v[45] = float("nan"), float("nan")

    got = Cache(shape, [stream], kernel=native).run([[rows]] * (100 // rows))[0]

    assert same_bits(got[:45], sound[:45])
    assert got[45:65].isnan().all()
    assert same_bits(got[65:], sound[65:])


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("window", [None, 40])
def test_what_is_no_number_reaches_only_those_who_see_it(
    native: NativeAttention, number: float, window: int | None
) -> None:
    shape = Shape(8, 4, 32, torch.bfloat16, window)
    stream = Stream.random(150, shape, seed=5)
    sound = Cache(shape, [stream], kernel=native).run([[150]])[0]
    for token in (70, 71, 100):
        stream.v[token, 1, 3] = number

    whole = Cache(shape, [stream], kernel=native, garbage=number).run([[150]])[0]
    alone = token_by_token(shape, stream, native)

    position = torch.arange(150)
    first = (position >= 70) & (position < 70 + (window or 150))
    touched = first | ((position >= 71) & (position < 100 + (window or 150)))
    assert not whole[touched, 2:4, 3].isfinite().any()
    assert torch.equal(whole.isnan(), alone.isnan())
    assert torch.equal(whole.nan_to_num(), alone.nan_to_num())
    whole[touched, 2:4, 3] = sound[touched, 2:4, 3]
    assert same_bits(whole, sound)


def test_scores_that_rise_from_chunk_to_chunk_keep_their_bits(native: NativeAttention) -> None:
    shape = Shape(4, 2, 64, torch.bfloat16)
    stream = Stream.random(400, shape, seed=6)
    stream.q.fill_(1.0)
    levels = [0.0, 0.5, 1.2, 30.0, 29.0, 31.0, 5.0]  # of scores, times 8: some rise by a little, some far
    for chunk, level in enumerate(levels):
        stream.k[64 * chunk : 64 * chunk + 64] = level + 0.1 * stream.k[64 * chunk : 64 * chunk + 64]

    whole = Cache(shape, [stream], kernel=native).run([[400]])[0]

    assert same_bits(whole, token_by_token(shape, stream, native))
    assert (whole.double() - plain_attention(shape, stream)).abs().max() < 2e-2


def test_threads_share_a_large_step_without_a_trace(native: NativeAttention) -> None:
    shape = Shape(8, 4, 64, torch.bfloat16)
    streams = [Stream.random(length, shape, length) for length in (300, 40, 128)]

    alone = Cache(shape, streams, kernel=native).run([[300, 40, 128]])
    shared = Cache(shape, streams, kernel=native, threads=4).run([[300, 40, 128]])

    for one, other in zip(alone, shared, strict=True):
        assert same_bits(one, other)

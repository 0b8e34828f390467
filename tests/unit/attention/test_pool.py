"""What a pool is, and what it refuses."""

from __future__ import annotations

import ctypes

import pytest
import torch

from ryzanstein_shard_worker.native.attention import Isa, NativeAttention, native_attention
from ryzanstein_shard_worker.paged_attention import KVPool, StepLayout, make_attend

from .streams import Cache, Shape, Stream


def layout(
    query_start: list[int],
    context_len: list[int],
    block_table: list[list[int]],
    dtype: torch.dtype = torch.int32,
) -> StepLayout:
    return StepLayout(
        *(torch.tensor(values, dtype=dtype) for values in (query_start, context_len, block_table))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_ledger(kernel: NativeAttention | None, dtype: torch.dtype) -> None:
    pool = KVPool(3, 10, 2, 64, dtype=dtype, kernel=kernel)

    assert pool.bytes == 3 * 2 * 10 * 16 * 2 * 64 * dtype.itemsize


def test_the_native_kernel_is_taken_where_it_fits() -> None:
    fits = [KVPool(1, 2, 1, 64), KVPool(1, 2, 1, 96, dtype=torch.float16)]
    misfits = [KVPool(1, 2, 1, 60), KVPool(1, 2, 1, 264), KVPool(1, 2, 1, 64, block_size=32)]

    assert all(pool.kernel is native_attention() for pool in fits)
    assert all(pool.kernel is None for pool in misfits)


def test_a_kernel_that_cannot_read_the_pages_is_refused(native: NativeAttention) -> None:
    with pytest.raises(ValueError, match="pages of 16 tokens"):
        KVPool(1, 2, 1, 60, kernel=native)


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 0, 1, 64, 16\)"):
        KVPool(1, 0, 1, 64)


def test_a_level_that_the_cpu_lacks_is_refused() -> None:
    class OldCpu:
        """The library as it answers on a CPU without AVX2."""

        def __init__(self) -> None:
            self.rz_attention_isa = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: Isa.BASELINE)
            self.rz_attention_best_isa = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: Isa.BASELINE)
            self.rz_attention_level = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: Isa.BASELINE)
            self.rz_paged_attention = ctypes.CFUNCTYPE(None)(lambda: None)

    with pytest.raises(ValueError, match="AVX512 are wanted, this CPU has BASELINE"):
        NativeAttention(OldCpu(), Isa.AVX512)  # type: ignore[arg-type]


def test_a_kernel_of_the_level_or_below_computes_what_it_is_made_for(native: NativeAttention) -> None:
    levels = {
        (dtype, head_dim): native.level(dtype, head_dim)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for head_dim in (8, 16, 32, 80, 128)
    }

    for (dtype, head_dim), level in levels.items():
        if dtype == torch.bfloat16 and native.isa == Isa.AMX and head_dim % 32 == 0:
            assert level == Isa.AMX
        elif dtype == torch.bfloat16 and native.isa == Isa.AVX512BF16 and head_dim % 16 == 0:
            assert level == Isa.AVX512BF16
        else:
            assert level == min(native.isa, Isa.AVX512)


def test_a_pool_names_what_reads_it(native: NativeAttention) -> None:
    pool = KVPool(1, 2, 1, 64, dtype=torch.bfloat16, kernel=native)

    assert pool.attention == native.isa.name.lower()
    assert KVPool(1, 2, 1, 60).attention == "torch"


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_would_turn_scores_around_is_refused(native: NativeAttention, scale: float) -> None:
    pool = KVPool(1, 2, 1, 64, kernel=native)

    with pytest.raises(ValueError, match="above 0"):
        make_attend(pool, layout([0, 1], [1], [[1]]), sliding_window=(None,), scale=scale)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (layout([0, 1], [17], [[1]]), "sequence 0 .* 17 tokens"),
        (layout([0, 1, 2], [1, 1], [[1], [4]]), "sequence 1 .* blocks \\[4\\]"),
        (layout([0, 1], [1], [[-1]]), "sequence 0"),
        (layout([0, 3], [2], [[1]]), "3 rows, 2 tokens"),
        (layout([0, 2, 1], [2, 2], [[1], [2]]), "sequence 1 .* -1 rows"),
        (layout([1, 2], [1], [[1]]), "first row 1"),
        (layout([0, 1], [1, 1], [[1]]), "not \\[2\\] and \\[2\\]"),
        (layout([0, 1], [1], [[1]], torch.int64), "int32 on cpu"),
    ],
)
def test_a_step_that_leaves_the_pool_is_refused(
    kernel: NativeAttention | None, step: StepLayout, message: str
) -> None:
    pool = KVPool(1, 4, 1, 64, kernel=kernel)

    with pytest.raises(ValueError, match=message):
        make_attend(pool, step, sliding_window=(None,), scale=1.0)


@pytest.mark.parametrize(
    ("windows", "message"), [((None,), "1 sliding windows"), ((None, 0), "1 token or more")]
)
def test_windows_that_do_not_fit_the_layers_are_refused(
    windows: tuple[int | None, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_attend(KVPool(2, 4, 1, 64), layout([0, 1], [1], [[1]]), sliding_window=windows, scale=1.0)


@pytest.mark.parametrize(
    ("q", "k", "dtype"),
    [
        ((2, 4, 64), (1, 2, 64), torch.float32),
        ((1, 4, 64), (1, 4, 64), torch.float32),
        ((1, 3, 64), (1, 2, 64), torch.float32),
        ((1, 4, 32), (1, 2, 32), torch.float32),
        ((1, 4, 64), (1, 2, 64), torch.bfloat16),
    ],
)
def test_rows_that_do_not_fit_the_pool_are_refused(
    kernel: NativeAttention | None, q: tuple[int, ...], k: tuple[int, ...], dtype: torch.dtype
) -> None:
    pool = KVPool(1, 4, 2, 64, kernel=kernel)
    attend = make_attend(pool, layout([0, 1], [1], [[1]]), sliding_window=(None,), scale=1.0)

    with pytest.raises(ValueError, match=r"attention takes|3 heads for 2 kv heads"):
        attend(0, torch.zeros(q, dtype=dtype), torch.zeros(k, dtype=dtype), torch.zeros(k, dtype=dtype))


def test_each_layer_has_its_own_pages_and_window(kernel: NativeAttention | None) -> None:
    shape = Shape(2, 1, 64)
    streams = [Stream.random(40, shape, seed) for seed in (1, 2)]
    pool = KVPool(2, 4, 1, 64, kernel=kernel)
    attend = make_attend(
        pool,
        layout([0, 40], [40], [[3, 1, 2]]),
        sliding_window=lambda layer: [None, 9][layer],
        scale=shape.scale,
    )

    both = [attend(layer, stream.q, stream.k, stream.v) for layer, stream in enumerate(streams)]

    for got, stream, window in zip(both, streams, (None, 9), strict=True):
        alone = Cache(Shape(2, 1, 64, window=window), [stream], kernel=kernel).run([[40]])[0]
        assert torch.equal(got, alone)

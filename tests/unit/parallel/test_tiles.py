"""Weights in tiles: the right numbers, each row on its own, in pages that many weights share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ryzanstein_shard_worker.communication import SingleHandler
from ryzanstein_shard_worker.huge_pages import HUGE_PAGE_BYTES, HugePages
from ryzanstein_shard_worker.native.linear import native_linear
from ryzanstein_shard_worker.parallel import ColumnParallelLinear
from ryzanstein_shard_worker.parallel.tiled_weight import TiledWeight, can_tile

from .joining import CPU, random

BF16 = torch.bfloat16

needs_tiles = pytest.mark.skipif(
    native_linear() is None, reason="this CPU has no AMX, or there is no library"
)

#: Features that fill groups and that don't, one product of inputs and more than are taken at once.
SHAPES = [(96, 64), (33, 96), (5, 32), (640, 1280), (40, 4128)]


def weight_of(out_features: int, in_features: int) -> Tensor:
    return random(out_features, in_features, scale=in_features**-0.5).to(BF16)


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_has_the_same_bits_in_every_batch(shape: tuple[int, int]) -> None:
    tiled = TiledWeight(weight_of(*shape))
    x, bias = random(700, shape[1], seed=1).to(BF16), random(shape[0], seed=2).to(BF16)
    whole = tiled(x, bias)
    for rows in (1, 2, 15, 16, 17, 31, 32, 33, 64, 97, 128, 160, 257, 699):
        for start in (0, 1, 650):
            batch = x[start : start + rows]
            assert torch.equal(tiled(batch, bias), whole[start : start + len(batch)]), (rows, start)


@needs_tiles
def test_a_row_has_the_same_bits_where_long_rows_and_many_features_are_cut() -> None:
    out_features, in_features = 8192 + 33, 2048 + 32  # one more than are taken at once of each
    tiled = TiledWeight(weight_of(out_features, in_features))
    x, bias = random(200, in_features, seed=1).to(BF16), random(out_features, seed=2).to(BF16)
    whole = tiled(x, bias)
    for rows in (slice(0, 1), slice(150, 166), slice(190, 200)):  # few rows are not cut
        assert torch.equal(tiled(x[rows], bias), whole[rows])


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 16, 33])
def test_products_are_those_of_the_plain_weight(shape: tuple[int, int], rows: int) -> None:
    weight, bias = weight_of(*shape), random(shape[0], seed=2).to(BF16)
    x = random(rows, shape[1], seed=1).to(BF16)
    for given in (None, bias):
        expected = functional.linear(x.double(), weight.double(), None if given is None else given.double())
        torch.testing.assert_close(TiledWeight(weight)(x, given).double(), expected, atol=2e-2, rtol=1e-2)


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_comes_back_bit_by_bit(shape: tuple[int, int]) -> None:
    weight = weight_of(*shape)
    assert torch.equal(TiledWeight(weight).plain(), weight)


@needs_tiles
def test_rows_may_be_slices_of_wider_ones_of_any_number_of_dimensions_and_none() -> None:
    weight = weight_of(8, 32)
    tiled, wide = TiledWeight(weight), random(6, 100, seed=3).to(BF16)
    assert torch.equal(tiled(wide[:, 3:35]), tiled(wide[:, 3:35].contiguous()))
    assert torch.equal(tiled(wide[:, ::3][:, :32]), tiled(wide[:, ::3][:, :32].contiguous()))
    assert tiled(wide[:, :96].reshape(6, 3, 32)).shape == (6, 3, 8)
    assert tiled(wide[:0, :32]).shape == (0, 8)
    with pytest.raises(ValueError, match=r"takes bfloat16 \[T, 32\], not torch.float32"):
        tiled(wide[:, :32].float())


@needs_tiles
def test_a_layer_takes_tiles_where_it_can_and_onednn_where_it_cannot() -> None:
    for inputs, dtype, tiles in ((64, BF16, True), (40, BF16, False), (64, torch.float32, False)):
        layer = ColumnParallelLinear(inputs, 48, bias=False, handler=SingleHandler(), dtype=dtype, device=CPU)
        weight = random(48, inputs).to(dtype)
        layer.load(weight)
        assert can_tile(layer.trainable_weight()) is tiles
        layer.pack()
        assert layer.packed
        assert torch.equal(layer.plain_weight(), weight)


def test_weights_share_huge_pages_and_large_ones_have_their_own() -> None:
    pages = HugePages()
    first, second = pages.take(100), pages.take(100)
    assert first.data_ptr() % HUGE_PAGE_BYTES == 0
    assert second.data_ptr() == first.data_ptr() + 128
    large = pages.take(40 * HUGE_PAGE_BYTES)
    assert large.data_ptr() % HUGE_PAGE_BYTES == 0
    first.fill_(1)
    second.fill_(2)
    large[-1] = 3
    assert first.unique().tolist() == [1]
    assert int(large[0]) == 0

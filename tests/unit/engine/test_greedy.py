"""The largest logit of each row in one pass is what torch finds, wherever it stands."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ryzanstein_shard_worker.native.greedy import native_greedy
from ryzanstein_shard_worker.native.library import load_library

pytestmark = pytest.mark.skipif(load_library() is None, reason="no C compiler built the native library here")


def found(logits: Tensor) -> tuple[list[bool], list[int]]:
    result = native_greedy(logits)
    assert result is not None
    return result


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 1003, 1024, 1025, 32000])
def test_the_place_is_the_first_of_the_largest(vocabulary: int) -> None:
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    logits[1] = -3.0  # all are equal
    logits[2, -1] = 9.0
    logits[3, vocabulary // 2 :] = 7.0
    logits[4] = -1e38
    finite, places = found(logits)
    assert finite == [True] * 5
    assert places == logits.argmax(dim=-1).tolist()
    assert places[1] == 0
    assert places[3] == vocabulary // 2


def test_rows_of_a_wider_tensor_are_taken_as_they_are() -> None:
    wide = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    assert found(wide[:, :150])[1] == wide[:, :150].argmax(dim=-1).tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 70, 1002])
def test_a_row_that_is_not_finite_says_so_and_spoils_no_other(bad: float, place: int) -> None:
    logits = torch.randn(3, 1003, generator=torch.Generator().manual_seed(1))
    expected = logits.argmax(dim=-1).tolist()
    logits[1, place] = bad
    finite, places = found(logits)
    assert finite == [True, False, True]
    assert [places[0], places[2]] == [expected[0], expected[2]]


def test_other_logits_are_left_to_torch() -> None:
    assert native_greedy(torch.zeros(2, 3, dtype=torch.float64)) is None
    assert native_greedy(torch.zeros(3, 2).T) is None

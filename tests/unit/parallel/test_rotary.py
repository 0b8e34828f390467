"""Rotary tables by their definition; tests/parity compares them with transformers'."""

from __future__ import annotations

import math

import pytest
import torch

from ryzanstein.model_plan import RopeScaling
from ryzanstein_shard_worker.parallel import RotaryEmbedding
from ryzanstein_shard_worker.parallel.rotary import inverse_frequencies, rotate

from .joining import CPU, F32, random


def test_every_pair_turns_by_position_times_frequency() -> None:
    dim = 8
    rotary = RotaryEmbedding(dim, theta=100.0, scaling=None, max_positions=50, dtype=F32, device=CPU)
    positions = torch.tensor([0, 3, 49])
    x = random(3, 2, dim)
    turned = rotate(x, rotary(positions))
    for row, position in enumerate(positions.tolist()):
        for i in range(dim // 2):
            angle = position * 100.0 ** (-2 * i / dim)
            a, b = x[row, :, i], x[row, :, i + dim // 2]
            torch.testing.assert_close(turned[row, :, i], a * math.cos(angle) - b * math.sin(angle))
            torch.testing.assert_close(
                turned[row, :, i + dim // 2], b * math.cos(angle) + a * math.sin(angle)
            )


def test_scores_depend_on_the_distance_only() -> None:
    rotary = RotaryEmbedding(16, theta=1e4, scaling=None, max_positions=100, dtype=F32, device=CPU)
    q, k = random(1, 1, 16), random(1, 1, 16, seed=1)

    def score(query: int, key: int) -> torch.Tensor:
        return (rotate(q, rotary(torch.tensor([query]))) * rotate(k, rotary(torch.tensor([key])))).sum()

    torch.testing.assert_close(score(7, 3), score(94, 90))


def test_a_position_beyond_the_table_is_an_error() -> None:
    rotary = RotaryEmbedding(4, theta=1e4, scaling=None, max_positions=10, dtype=F32, device=CPU)
    with pytest.raises(IndexError):
        rotary(torch.tensor([10]))


def test_an_unknown_scaling_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown rotary scaling 'other'"):
        inverse_frequencies(8, 1e4, RopeScaling("other", 2.0, 64))

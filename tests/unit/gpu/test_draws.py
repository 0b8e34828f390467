"""All rows at once draw what each of them draws alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ryzanstein_shard_worker.gpu.draws import Draw, draw_rows
from ryzanstein_shard_worker.sampling import sample
from tests.unit.engine.sequences import sequence

PARAMETERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "min_p": 0.01},
]


def draw_of(one: Any) -> Draw:
    params = one.params
    return Draw(
        temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p,
        seed=params.seed, choice=params.choice, position=one.num_output,
    )  # fmt: skip


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_rows_of_one_kind(parameters: dict[str, Any]) -> None:
    logits = 3 * torch.randn(24, 503, generator=torch.Generator().manual_seed(5))
    sequences = [sequence(prompt=[row, row + 1], seed=(row << 33) + row, **parameters) for row in range(24)]
    finite, tokens = draw_rows(logits, [draw_of(one) for one in sequences])
    assert all(finite)
    assert tokens == [result.token for result in sample(logits, sequences)]


def test_rows_of_every_kind_together() -> None:
    logits = 3 * torch.randn(36, 503, generator=torch.Generator().manual_seed(6))
    sequences = [sequence(seed=row, **PARAMETERS[row % len(PARAMETERS)]) for row in range(36)]
    _, tokens = draw_rows(logits, [draw_of(one) for one in sequences])
    assert tokens == [result.token for result in sample(logits, sequences)]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_told_and_harms_no_other(poison: float) -> None:
    logits = torch.zeros(2, 50)
    logits[0, 2] = poison
    logits[1, 7] = 30.0
    finite, tokens = draw_rows(logits, [draw_of(sequence(temperature=0.5, seed=1))] * 2)
    assert finite == [False, True]
    assert tokens[1] == 7


def test_penalties_come_before_the_draw() -> None:
    from ryzanstein_shard_worker.sampling import _draw_all

    kinds: list[dict[str, Any]] = [
        {"temperature": 0.9, "logit_bias": {7: 3.0, 15: -100.0}},
        {"temperature": 1.0, "frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.2},
        {"logit_bias": {3: 100.0}},
        {},
    ]
    logits = 3 * torch.randn(8, 503, generator=torch.Generator().manual_seed(7))
    sequences = [sequence(prompt=[1, 2, 7], seed=row, **kinds[row % 4]) for row in range(8)]
    finite, tokens = _draw_all(logits, sequences)
    assert all(finite)
    assert tokens == [result.token for result in sample(logits, sequences)]

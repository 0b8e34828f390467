"""Tokens are drawn as the parameters say, and from nothing but the request."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzanstein_shard_worker.sampling import sample

from .sequences import sequence


def draws(logits: list[float], count: int, **sampling: Any) -> list[int]:
    """One token for each of `count` seeds."""
    row = torch.tensor([logits])
    return [
        sample(
            row,
            [
                sequence(
                    temperature=sampling.get("temperature", 1.0),
                    seed=seed,
                    **{key: value for key, value in sampling.items() if key != "temperature"},
                )
            ],
        )[0].token
        for seed in range(count)
    ]


def test_greedy_takes_the_most_probable_and_the_first_of_equals() -> None:
    assert sample(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), [sequence()])[0].token == 1


def test_draws_follow_the_softmax() -> None:
    logits = [0.0, 1.0, 2.0, -1.0]
    count = 4000
    tokens = torch.tensor(draws(logits, count))
    expected = torch.softmax(torch.tensor(logits), dim=0)
    observed = torch.bincount(tokens, minlength=4) / count
    # four standard errors of a proportion
    assert torch.all((observed - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt())


def test_temperature_sharpens() -> None:
    cold = draws([0.0, 1.0], 500, temperature=0.2).count(1)
    hot = draws([0.0, 1.0], 500, temperature=5.0).count(1)
    assert cold > 480
    assert hot < 350


def test_top_k_keeps_k() -> None:
    assert set(draws([1.0, 5.0, 4.0, 3.0], 300, temperature=5.0, top_k=2)) == {1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert set(draws(logits, 400, top_p=0.79)) == {0, 1}
    assert set(draws(logits, 400, top_p=0.81)) == {0, 1, 2}
    assert set(draws(logits, 50, top_p=0.0001)) == {0}


def test_min_p_drops_what_is_less_probable_than_a_share_of_the_best() -> None:
    logits = [math.log(p) for p in (0.5, 0.3, 0.15, 0.05)]
    assert set(draws(logits, 400, min_p=0.25)) == {0, 1, 2}
    assert set(draws(logits, 400, min_p=0.25, top_k=2)) == {0, 1}
    assert set(draws(logits, 50, min_p=1.0)) == {0}


def test_a_draw_does_not_depend_on_the_rest_of_the_batch() -> None:
    torch.manual_seed(0)
    logits = torch.randn(8, 500)
    sequences = [sequence(prompt=[row], temperature=0.9, top_p=0.9, seed=row) for row in range(8)]
    together = [result.token for result in sample(logits, sequences)]
    alone = [sample(logits[row : row + 1], [sequences[row]])[0].token for row in range(8)]
    assert together == alone


def test_penalties_and_bias_move_the_choice() -> None:
    logits = torch.tensor([[1.0, 0.9, 0.8, -3.0]])
    produced = sequence(prompt=[3])
    produced.tokens += [0, 0]
    assert sample(logits, [produced])[0].token == 0
    for params in ({"frequency_penalty": 0.1}, {"presence_penalty": 0.15}, {"repetition_penalty": 1.2}):
        punished = sequence(prompt=[3], **params)
        punished.tokens += [0, 0]
        assert sample(logits, [punished])[0].token == 1, params
    assert sample(logits, [sequence(prompt=[3], logit_bias={3: 10.0, 0: -100.0})])[0].token == 3


def test_repetition_penalty_counts_the_prompt_and_punishes_negative_logits_too() -> None:
    logits = torch.tensor([[-1.0, -1.1]])
    assert sample(logits, [sequence(prompt=[0], repetition_penalty=1.5)])[0].token == 1


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    result = sample(logits, [sequence(logprobs=2, temperature=0.7, logit_bias={0: 100.0}, seed=3)])[0]
    expected = torch.log_softmax(logits[0], dim=0)
    assert result.logprobs is not None
    assert result.logprobs.token_id == 0
    assert result.logprobs.logprob == pytest.approx(float(expected[0]), abs=1e-5)
    assert [entry.token_id for entry in result.logprobs.top] == [1, 3]
    assert result.logprobs.top[0].logprob == pytest.approx(float(expected[1]), abs=1e-5)


def test_no_logprobs_unless_asked() -> None:
    assert sample(torch.zeros(1, 4), [sequence()])[0].logprobs is None


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_an_error_of_its_own_sequence_only(poison: float) -> None:
    logits = torch.zeros(2, 5)
    logits[0, 2] = poison
    bad, good = sample(logits, [sequence(), sequence()])
    assert "NaN" in bad.error
    assert good.error == ""


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    temperature=st.floats(0.05, 3.0),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
)
def test_whatever_the_parameters_the_draw_repeats_and_is_in_the_vocabulary(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.linspace(-4, 4, 50)[
        torch.randperm(50, generator=torch.Generator().manual_seed(seed % 97))
    ][None]
    params: dict[str, Any] = {
        "seed": seed,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    first = sample(logits, [sequence(**params)])[0].token
    assert first == sample(logits, [sequence(**params)])[0].token
    assert 0 <= first < 50

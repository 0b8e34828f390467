"""The leader draws the same token from the same logits, whether they are on CUDA or on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ryzanstein_shard_worker.sampling import sample
from tests.unit.engine.sequences import sequence

PARAMETERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 1.0, "frequency_penalty": 0.5, "presence_penalty": 0.3, "repetition_penalty": 1.2},
    {"temperature": 0.9, "logit_bias": {7: 3.0, 1500: -100.0}},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_tokens_are_those_of_the_cpu(cuda: torch.device, parameters: dict[str, Any]) -> None:
    logits = 3 * torch.randn(64, 2003, generator=torch.Generator().manual_seed(5))
    sequences = [sequence(prompt=[row, row + 1, 7], seed=1000 + row, **parameters) for row in range(64)]
    on_cpu = [result.token for result in sample(logits, sequences)]
    on_cuda = [result.token for result in sample(logits.to(cuda), sequences)]
    assert on_cuda == on_cpu


def test_logprobs_are_those_of_the_cpu(cuda: torch.device) -> None:
    logits = 3 * torch.randn(8, 2003, generator=torch.Generator().manual_seed(6))
    sequences = [sequence(temperature=1.0, seed=row, logprobs=5) for row in range(8)]
    for here, there in zip(sample(logits, sequences), sample(logits.to(cuda), sequences), strict=True):
        assert here.logprobs is not None
        assert there.logprobs is not None
        assert there.logprobs.token_id == here.logprobs.token_id
        assert there.logprobs.logprob == pytest.approx(here.logprobs.logprob, abs=1e-5)
        assert [top.token_id for top in there.logprobs.top] == [top.token_id for top in here.logprobs.top]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_an_error_of_its_own_sequence_only(
    cuda: torch.device, poison: float
) -> None:
    logits = torch.zeros(2, 5, device=cuda)
    logits[0, 2] = poison
    bad, good = sample(logits, [sequence(), sequence()])
    assert "NaN" in bad.error
    assert good.error == ""

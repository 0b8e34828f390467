"""The gradient of every weight, on every rank, is that of transformers' model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ryzanstein.model_plan import placements, read_model_config
from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.parallel import dense_causal_attend
from tests.checkpoints import Checkpoints, make_model
from tests.loaded_models import load_model
from tests.ranks import run_ranks

LENGTH = 13
TOKEN_IDS = torch.randint(0, 256, (LENGTH,), generator=torch.Generator().manual_seed(1))
TARGETS = torch.randint(0, 256, (LENGTH,), generator=torch.Generator().manual_seed(2))


def slices(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def loss_of(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits, TARGETS)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}),
        ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 4}),
    ],
    ids=["llama", "qwen2", "qwen3", "mistral"],
)
def test_gradients_equal_those_of_transformers(
    checkpoints: Checkpoints, family: str, overrides: dict[str, Any], world: int
) -> None:
    reference = make_model(family, **overrides)
    expected_loss = loss_of(reference(TOKEN_IDS[None]).logits[0])
    torch.autograd.backward(expected_loss)
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    directory = checkpoints(family, **overrides)
    config = read_model_config(directory)

    def on_rank(handler: CommunicationHandler) -> None:
        model = load_model(directory, handler)
        hidden = model(TOKEN_IDS, torch.arange(LENGTH), dense_causal_attend([LENGTH], model.sliding_windows))
        loss = loss_of(model.logits(hidden))
        torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=1e-5)
        torch.autograd.backward(loss)
        ours = {name: parameter.grad for name, parameter in model.named_parameters()}
        rest = {}
        for name, gradient in ours.items():
            assert gradient is not None, name
            rest[name] = gradient.clone()
        for place in placements(config, handler.rank, world):
            gradient = rest[place.parameter][slices(place.target)]
            theirs = expected[place.tensor][slices(place.source)]
            torch.testing.assert_close(gradient, theirs, atol=1e-5, rtol=1e-3, msg=place.parameter)
            gradient.zero_()
        assert not any(gradient.any() for gradient in rest.values()), "padding has gradients"

    run_ranks(world, on_rank)

"""transformers' own modules, split by transformers' own plans, give the same logits and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.parallel import (
    ColumnParallelLinear,
    DistributedModelWrapper,
    ParallelEmbedding,
    RowParallelLinear,
)
from tests.checkpoints import FAMILIES, make_model
from tests.ranks import run_ranks

TOKEN_IDS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
TARGETS = torch.randint(0, 256, (18,), generator=torch.Generator().manual_seed(2))


def loss_of(logits: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), TARGETS)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        *((family, {}) for family in FAMILIES),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        ("qwen3", {"num_key_value_heads": 2}),
    ],
    ids=[*FAMILIES, "llama-tied-one-kv-head", "qwen3-two-kv-heads"],
)
def test_a_wrapped_transformers_model_is_the_model(
    family: str, overrides: dict[str, Any], world: int
) -> None:
    original = make_model(family, **overrides)
    plan = dict(original.tp_plan)
    assert "lm_head" in plan
    expected = original(TOKEN_IDS).logits
    torch.autograd.backward(loss_of(expected))

    def on_rank(handler: CommunicationHandler) -> None:
        model = copy.deepcopy(original)
        model.zero_grad()
        wrapped = DistributedModelWrapper(model, plan, handler)
        logits = wrapped(TOKEN_IDS).logits
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        torch.autograd.backward(loss_of(logits))
        for name, parameter in original.named_parameters():
            module_name, _, kind = name.rpartition(".")
            part = model.get_submodule(module_name)
            gradient, theirs = part.get_parameter(kind).grad, parameter.grad
            if isinstance(part, ColumnParallelLinear):
                theirs = part.parts[0].cut(theirs)
            elif isinstance(part, ParallelEmbedding):
                theirs = part.part.cut(theirs)
            elif isinstance(part, RowParallelLinear) and kind == "weight":
                theirs = part.part.cut(theirs, 1)
            torch.testing.assert_close(gradient, theirs, atol=1e-5, rtol=1e-3, msg=name)
        wrapped.pack()
        with torch.inference_mode():
            torch.testing.assert_close(wrapped(TOKEN_IDS).logits, expected, atol=1e-4, rtol=0)

    run_ranks(world, on_rank)

"""A model of each family gives on CUDA what it gives on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.checkpoints import FAMILIES, Checkpoints, make_model

from .loading import CPU, load_on, logits_on

TOKEN_IDS = torch.randint(0, 331, (41,), generator=torch.Generator().manual_seed(1))

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": 7}),
]


@pytest.mark.parametrize(("family", "unusual"), VARIANTS, ids=str)
def test_float32_logits_are_those_of_transformers_on_the_cpu(
    checkpoints: Checkpoints, cuda: torch.device, family: str, unusual: dict[str, Any]
) -> None:
    with torch.inference_mode():
        expected = make_model(family, **unusual)(TOKEN_IDS[None]).logits[0]
    got = logits_on(cuda, load_on(cuda, checkpoints(family, **unusual), torch.float32), TOKEN_IDS)
    assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_as_near_to_float32_as_on_the_cpu(
    checkpoints: Checkpoints, cuda: torch.device, family: str, dtype: torch.dtype
) -> None:
    """Both round at the same places, so neither may be much further from the exact logits than the other."""
    directory = checkpoints(family)
    exact = logits_on(CPU, load_on(CPU, directory, torch.float32), TOKEN_IDS)
    on_cpu = logits_on(CPU, load_on(CPU, directory, dtype), TOKEN_IDS)
    on_cuda = logits_on(cuda, load_on(cuda, directory, dtype), TOKEN_IDS)
    allowed = 1.5 * (on_cpu - exact).abs().mean()
    assert (on_cuda - exact).abs().mean() <= allowed
    assert (on_cuda - exact).abs().max() <= 2 * (on_cpu - exact).abs().max()

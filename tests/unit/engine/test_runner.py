"""Which rows a step's logits are of: the last one of every slice that samples, then those that are scored."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from ryzanstein_shard_worker.batch import Batch, Slice
from ryzanstein_shard_worker.communication import SingleHandler
from ryzanstein_shard_worker.models import Decoder
from ryzanstein_shard_worker.paged_attention import KVPool
from ryzanstein_shard_worker.runner import Runner
from ryzanstein_shard_worker.sequence import Sequence
from tests.loaded_models import load_model

from .sequences import submission
from .test_prefix_exactness import BUNDLED_MODEL

PROMPT = [7, 300, 41, 9, 512, 6, 77]


@cache
def model() -> Decoder:
    return load_model(BUNDLED_MODEL, SingleHandler(), dtype="float32")


def whole(number: int, prompt: list[int], *, scored: bool) -> Slice:
    """A prompt that is computed at once, on a page of its own."""
    sampling: dict[str, Any] = {"prompt_logprobs": 0} if scored else {}
    sequence = Sequence.from_wire(submission(number, prompt, **sampling))
    sequence.blocks = [number]
    return Slice(sequence, 0, len(prompt), samples=True)


def logits(*slices: Slice) -> torch.Tensor:
    torch.set_num_threads(1)
    config = model().config
    pool = KVPool(config.num_layers, 8, config.num_kv_heads, config.head_dim, dtype=torch.float32)
    result: torch.Tensor = Runner(model(), pool, cpu_threads=1).run(Batch(slices))
    return result


def test_a_prompt_that_is_scored_whole_has_the_row_that_samples_first_and_then_its_own_in_order() -> None:
    """As many rows are wanted as there are, in another order."""
    scored = logits(whole(1, PROMPT, scored=True))
    each = [logits(whole(1, PROMPT[: n + 1], scored=False))[0] for n in range(len(PROMPT))]
    torch.testing.assert_close(scored, torch.stack([each[-1], *each[:-1]]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [True, False])
def test_scored_and_unscored_prompts_beside_each_other_get_their_own_rows(first: bool) -> None:
    other = [5, 6, 8, 13]
    slices = [whole(1, PROMPT, scored=True), whole(2, other, scored=False)]
    both = logits(*(slices if first else reversed(slices)))
    alone, beside = logits(whole(1, PROMPT, scored=True)), logits(whole(2, other, scored=False))
    samples = [alone[:1], beside] if first else [beside, alone[:1]]
    torch.testing.assert_close(both, torch.cat([*samples, alone[1:]]), rtol=1e-4, atol=1e-4)

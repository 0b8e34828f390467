"""Ranks that are processes, over the real backends, give the logits that transformers gives, all the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.parallel import dense_causal_attend
from tests.checkpoints import Checkpoints, make_model
from tests.distributed.ranks import CPU_BACKENDS, Backend, Rank, Ranks
from tests.loaded_models import load_model
from tests.ranks import run_ranks

LENGTH = 23
TOKEN_IDS = torch.randint(0, 256, (LENGTH,), generator=torch.Generator().manual_seed(1))

CASES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 1},
    "qwen3": {"tie_word_embeddings": True},
}


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with Ranks(request.param) as ranks:
        yield ranks


def logits_of(handler: CommunicationHandler, directory: Path, dtype: str) -> Any:
    torch.set_num_threads(1)
    model = load_model(directory, handler, dtype=dtype, pack=True)
    with torch.inference_mode():
        hidden = model(TOKEN_IDS, torch.arange(LENGTH), dense_causal_attend([LENGTH], model.sliding_windows))
        return model.logits(hidden).numpy()


def logits_in_process(rank: Rank, directory: Path, dtype: str) -> Any:
    return logits_of(rank.handler, directory, dtype)


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_processes_give_the_logits_of_transformers(
    ranks: Ranks, checkpoints: Checkpoints, backend: Backend, family: str
) -> None:
    overrides = CASES[family]
    with torch.inference_mode():
        expected = make_model(family, **overrides)(TOKEN_IDS[None]).logits[0].numpy()
    ranks.form(backend)
    directory = checkpoints(family, **overrides)
    first, *others = ranks.call(logits_in_process, directory, "float32")
    assert np.abs(first - expected).max() < 1e-4
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_backend_gives_the_same_bits(
    ranks: Ranks, checkpoints: Checkpoints, backend: Backend, dtype: str
) -> None:
    directory = checkpoints("llama", dtype=dtype)
    ranks.form(backend)
    in_processes = ranks.call(logits_in_process, directory, dtype)
    in_threads = run_ranks(len(ranks.processes), lambda handler: logits_of(handler, directory, dtype))
    assert all(np.array_equal(in_threads[0], logits) for logits in (*in_threads, *in_processes))

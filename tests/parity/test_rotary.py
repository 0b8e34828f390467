"""Frequencies and tables are transformers', bit by bit or nearly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ryzanstein.model_plan import read_model_config
from ryzanstein_shard_worker.parallel import RotaryEmbedding
from tests.checkpoints import Checkpoints, make_model

KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-smooth": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "attention_factor": 0.9,
    },
    "yarn-mscale": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tables_are_those_of_transformers(checkpoints: Checkpoints, kind: str, dtype: str) -> None:
    overrides: dict[str, Any] = {"rope_parameters": dict(KINDS[kind]), "head_dim": 64, "num_hidden_layers": 1}
    theirs = make_model("llama", **overrides).model.rotary_emb
    config = read_model_config(checkpoints("llama", **overrides))
    ours = RotaryEmbedding(
        config.head_dim,
        theta=config.rope_theta,
        scaling=config.rope_scaling,
        max_positions=256,
        dtype=getattr(torch, dtype),
        device=torch.device("cpu"),
    )
    positions = torch.arange(256)
    cos, sin = theirs(torch.empty(0, dtype=getattr(torch, dtype)), positions[None])
    rotation = ours(positions)
    sin[0, :, :32].neg_()  # ours carries the sign of the first half
    # llama3 and yarn are written another way round: the last bit of a frequency may differ.
    tolerance = 0.0 if kind in {"default", "linear", "dynamic"} else 1e-5 if dtype == "float32" else 4e-3
    torch.testing.assert_close(rotation.cos[:, 0], cos[0], atol=tolerance, rtol=0)
    torch.testing.assert_close(rotation.sin[:, 0], sin[0], atol=tolerance, rtol=0)

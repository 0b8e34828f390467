"""Sizes of models to measure with: written as a config.json, filled with random weights where they are needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ryzanstein.model_plan import ModelConfig, read_model_config

_COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}

SHAPES: dict[str, dict[str, Any]] = {
    #: As Llama 3.1 8B: 8.0 billion parameters, 16 GB in bfloat16.
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
    },
    #: 495 million parameters; `benchmarks.models` makes a checkpoint of it.
    "medium": {
        "vocab_size": 32000,
        "hidden_size": 1280,
        "intermediate_size": 3456,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "max_position_embeddings": 4096,
    },
    #: To try the commands out.
    "tiny": {
        "vocab_size": 1003,
        "hidden_size": 128,
        "intermediate_size": 300,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
    },
}


def write_config(directory: Path, shape: str, *, layers: int | None = None) -> ModelConfig:
    """Writes config.json, with fewer layers if `layers` says so, and reads it as a worker does."""
    config = {**_COMMON, **SHAPES[shape]}
    if layers is not None:
        config["num_hidden_layers"] = min(layers, config["num_hidden_layers"])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return read_model_config(directory)

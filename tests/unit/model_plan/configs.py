"""Configurations for tests: as records, as strategies, and as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from ryzanstein.model_plan import ModelConfig

#: What a config.json of Llama must have, in the spelling of transformers 4.
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write_config(directory: Path, values: object, name: str = "config.json") -> Path:
    """Writes the file and returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    text = values if isinstance(values, str) else json.dumps(values)
    (directory / name).write_text(text)
    return directory


def record(**changes: Any) -> ModelConfig:
    """A record of a small Llama."""
    layers = changes.get("num_layers", 1)
    values: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "family": "llama",
        "vocab_size": 30,
        "hidden_size": 12,
        "intermediate_size": 10,
        "num_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 2,
        "max_position_embeddings": 64,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "output_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "sliding_window": None,
        "sliding_layers": (False,) * layers,
        "hidden_act": "silu",
        "dtype": "float32",
        "eos_token_ids": (2,),
        "bos_token_id": 1,
    }
    return ModelConfig(**{**values, **changes})


@st.composite
def records(draw: st.DrawFn) -> ModelConfig:
    """Small models of every make, with sizes that mostly don't divide."""
    kv_heads = draw(st.sampled_from([1, 2, 3, 4]))
    layers = draw(st.integers(1, 2))
    bias = draw(st.booleans())
    return record(
        vocab_size=draw(st.integers(1, 40)),
        hidden_size=draw(st.integers(1, 9)),
        intermediate_size=draw(st.integers(1, 20)),
        num_layers=layers,
        num_heads=kv_heads * draw(st.sampled_from([1, 2, 3, 4])),
        num_kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=bias,
        output_bias=bias and draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        sliding_layers=(False,) * layers,
    )

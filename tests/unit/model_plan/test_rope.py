"""Rotary embeddings: the record holds everything that transformers computes its frequencies from."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest

from ryzanstein.model_plan import ModelConfig, ModelError, read_model_config

from .configs import LLAMA, write_config

_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}


def _v4(scaling: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    return {**LLAMA, "rope_scaling": scaling, **changes}


def _v5(**parameters: Any) -> dict[str, Any]:
    values = {**LLAMA, "rope_parameters": {"rope_theta": 500000.0, **parameters}}
    del values["rope_theta"]
    return values


def _frequencies(config: ModelConfig) -> list[float]:
    """The formulas that the docstring of RopeScaling describes, in double precision."""
    dim, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    plain = [theta ** (-i / dim) for i in range(0, dim, 2)]
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return [frequency / scaling.factor for frequency in plain]
    original = scaling.original_max_position_embeddings
    if scaling.kind == "llama3":
        scaled = []
        for frequency in plain:
            rotations = original * frequency / (2 * math.pi)
            blend = (rotations - scaling.low_freq_factor) / (
                scaling.high_freq_factor - scaling.low_freq_factor
            )
            blend = min(max(blend, 0.0), 1.0)
            scaled.append((1 - blend) * frequency / scaling.factor + blend * frequency)
        return scaled

    def dimension_of(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = [min(max((i - low) / (high - low or 0.001), 0.0), 1.0) for i in range(dim // 2)]
    return [f / scaling.factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]


@pytest.mark.parametrize(
    "values",
    [
        _v4(None),
        _v5(rope_type="default"),
        _v5(),
        {key: value for key, value in LLAMA.items() if key != "rope_theta"},
        _v4({"type": "linear", "factor": 2.5}),
        _v5(rope_type="linear", factor=2),
        _v4({"rope_type": "llama3", **_LLAMA3}),
        _v5(rope_type="llama3", **_LLAMA3),
        _v4({"type": "yarn", **_YARN}),
        _v4({"type": "yarn", "factor": 4.0}),
        _v5(rope_type="yarn", **_YARN, beta_fast=16, beta_slow=2, truncate=False),
        _v5(rope_type="yarn", **_YARN, mscale=0.7, mscale_all_dim=0.9),
        _v5(rope_type="yarn", **_YARN, attention_factor=1.25),
        _v4({"type": "yarn", **_YARN}, original_max_position_embeddings=2048),
        _v4({"type": "dynamic", "factor": 4.0}),
        _v4({"type": "linear", "factor": 3.0, "rope_theta": 77.0}),
    ],
)
def test_gives_transformers_frequencies_and_attention_factor(tmp_path: Path, values: dict[str, Any]) -> None:
    values = {**values, "head_dim": 32}
    config = read_model_config(write_config(tmp_path, values))
    transformers = importlib.import_module("transformers")
    rotary = importlib.import_module("transformers.models.llama.modeling_llama").LlamaRotaryEmbedding(
        transformers.AutoConfig.from_pretrained(tmp_path)
    )
    assert _frequencies(config) == pytest.approx(rotary.inv_freq.tolist(), rel=1e-5)
    factor = 1.0 if config.rope_scaling is None else config.rope_scaling.attention_factor
    assert factor == pytest.approx(rotary.attention_scaling, rel=1e-12)


def test_yarn_reaches_farther_than_the_position_embeddings_say(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    assert read_model_config(write_config(tmp_path, _v4(scaling))).context_length == 16384
    assert (
        read_model_config(write_config(tmp_path, _v4({"type": "dynamic", "factor": 4}))).context_length
        == 4096
    )
    assert read_model_config(write_config(tmp_path, LLAMA)).context_length == 4096


@pytest.mark.parametrize(
    ("values", "where", "says"),
    [
        (
            _v4({"type": "longrope"}),
            "rope_scaling.rope_type",
            "supported are default, dynamic, linear, llama3",
        ),
        (_v4({"type": 3}), "rope_scaling.type", "must be a string"),
        (_v4("linear"), "rope_scaling", "must be an object, is a string ('linear')"),  # type: ignore[arg-type]
        (_v4({"type": "linear"}), "rope_scaling.factor", "is missing"),
        (_v4({"type": "linear", "factor": 0}), "rope_scaling.factor", "must be a finite number above 0"),
        (_v5(rope_type="llama3", factor=8), "rope_parameters.low_freq_factor", "is missing"),
        (
            _v5(rope_type="llama3", **{**_LLAMA3, "high_freq_factor": 1.0}),
            "rope_parameters.high_freq_factor",
            "must be greater than low_freq_factor",
        ),
        (_v5(rope_type="yarn", **_YARN, truncate=1), "rope_parameters.truncate", "must be true or false"),
        (_v5(partial_rotary_factor=0.5), "rope_parameters.partial_rotary_factor", "must be 1"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor", "must be 1, is 0.5"),
        (
            _v5(full_attention={"rope_type": "default"}),
            "rope_parameters",
            "different parameters per layer type",
        ),
    ],
)
def test_names_the_key_that_is_wrong(tmp_path: Path, values: dict[str, Any], where: str, says: str) -> None:
    with pytest.raises(ModelError) as error:
        read_model_config(write_config(tmp_path, values))
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: {where}: ")
    assert says in str(error.value)

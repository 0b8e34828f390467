"""Rotary position embeddings as a checkpoint configures them, in the spelling of transformers 4 and 5."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .fields import Fields

#: What `rope_theta` is where a config names none (transformers, RotaryEmbeddingConfigMixin.default_theta).
DEFAULT_THETA = 10_000.0

_SUPPORTED = ("default", "dynamic", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the inverse frequencies differ from `theta ** -(2i / head_dim)`.

    - "linear": divided by `factor`.
    - "llama3": long wavelengths divided by `factor`, medium ones blended; uses `low_freq_factor`,
      `high_freq_factor` and `original_max_position_embeddings`.
    - "yarn" (https://arxiv.org/abs/2309.00071): blended by a ramp between `beta_fast` and `beta_slow`
      rotations over `original_max_position_embeddings`, whose ends are rounded outwards if `truncate`; cos
      and sin are multiplied by `attention_factor` (1.0 for the other kinds).
    """

    kind: str
    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


def read_rope(config: Fields, max_position_embeddings: int) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of a config.json: `rope_theta` + `rope_scaling`, or `rope_parameters` with both in it.

    "dynamic" (NTK) scaling changes nothing up to `max_position_embeddings`, which is as far as it is served:
    beyond it the frequencies would depend on the longest sequence of the batch. It is read as no scaling.
    Raises ModelError for other kinds.
    """
    rope = config.optional_object("rope_scaling") or config.optional_object("rope_parameters")
    theta = config.number("rope_theta", DEFAULT_THETA)
    partial = config.number("partial_rotary_factor", 1.0)
    if rope is None:
        _refuse_partial(config, partial)
        return theta, None
    if any(isinstance(value, dict) for value in rope.values.values()):
        config.fail(
            rope.prefix.rstrip("."), "has different parameters per layer type, which is not supported"
        )
    theta = rope.number("rope_theta", theta)
    _refuse_partial(rope, rope.number("partial_rotary_factor", partial))
    kind = rope.optional_string("rope_type") or rope.optional_string("type") or "default"
    if kind not in _SUPPORTED:
        rope.fail("rope_type", f"{kind!r} is not supported; supported are {', '.join(_SUPPORTED)}")
    if kind in ("default", "dynamic"):
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind, rope.number("factor"), max_position_embeddings)
    # transformers lets a key beside the dictionary win over the one in it, and falls back to the full length.
    original = (
        config.optional_integer("original_max_position_embeddings")
        or rope.optional_integer("original_max_position_embeddings")
        or max_position_embeddings
    )
    if kind == "llama3":
        return theta, _llama3(rope, original)
    return theta, _yarn(rope, original, max_position_embeddings)


def _llama3(rope: Fields, original: int) -> RopeScaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        rope.fail("high_freq_factor", f"must be greater than low_freq_factor ({low:g}), is {high:g}")
    return RopeScaling("llama3", rope.number("factor"), original, low_freq_factor=low, high_freq_factor=high)


def _yarn(rope: Fields, original: int, max_position_embeddings: int) -> RopeScaling:
    factor = rope.number("factor", max_position_embeddings / original)
    return RopeScaling(
        "yarn",
        factor,
        original,
        attention_factor=_yarn_attention_factor(rope, factor),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.boolean("truncate", True),
    )


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """0.1 ln(factor) + 1 (YaRN, section 3.4), or the ratio of two such with DeepSeek's mscale weights."""
    given = rope.optional_number("attention_factor")
    if given is not None:
        return given

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    weight, weight_all = (
        rope.optional_number("mscale", above=-1),
        rope.optional_number("mscale_all_dim", above=-1),
    )
    return mscale(weight) / mscale(weight_all) if weight and weight_all else mscale(1.0)


def _refuse_partial(fields: Fields, partial: float) -> None:
    if partial != 1.0:
        fields.fail(
            "partial_rotary_factor", f"must be 1, is {partial:g}: partly rotated heads are not supported"
        )

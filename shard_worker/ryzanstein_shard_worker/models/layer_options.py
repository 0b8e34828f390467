"""What distinguishes the layers of one family from those of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ryzanstein.model_plan import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """One decoder layer, beyond its sizes."""

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  #: q and k normalised per head, before the rotation
    sliding_window: int | None = None  #: a query sees itself and the sliding_window - 1 positions before it


#: (config, index of the layer) → its options. Each family has one.
LayerRule = Callable[[ModelConfig, int], LayerOptions]

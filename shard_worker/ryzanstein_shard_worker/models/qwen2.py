"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from ryzanstein.model_plan import ModelConfig

from .layer_options import LayerOptions


def qwen2_layer(config: ModelConfig, layer: int) -> LayerOptions:
    """Biases for q, k and v only; some layers may have a sliding window."""
    return LayerOptions(qkv_bias=True, sliding_window=config.window_of(layer))

"""Qwen3, dense."""

from __future__ import annotations

from ryzanstein.model_plan import ModelConfig

from .layer_options import LayerOptions


def qwen3_layer(config: ModelConfig, layer: int) -> LayerOptions:
    """q and k normalised per head; some layers may have a sliding window."""
    return LayerOptions(
        qkv_bias=config.attention_bias,
        output_bias=config.output_bias,
        qk_norm=True,
        sliding_window=config.window_of(layer),
    )

"""Mistral."""

from __future__ import annotations

from ryzanstein.model_plan import ModelConfig

from .layer_options import LayerOptions


def mistral_layer(config: ModelConfig, layer: int) -> LayerOptions:
    """No biases; a sliding window in all layers, if there is one."""
    return LayerOptions(sliding_window=config.window_of(layer))

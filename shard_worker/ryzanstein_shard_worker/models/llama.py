"""Llama 2, 3, 3.1 and 3.2, and what is built like them."""

from __future__ import annotations

from ryzanstein.model_plan import ModelConfig

from .layer_options import LayerOptions


def llama_layer(config: ModelConfig, layer: int) -> LayerOptions:
    """Full attention; biases where the checkpoint's config asks for them."""
    return LayerOptions(
        qkv_bias=config.attention_bias, output_bias=config.output_bias, mlp_bias=config.mlp_bias
    )

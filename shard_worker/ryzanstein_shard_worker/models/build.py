"""From a model's configuration to its modules."""

from __future__ import annotations

import torch

from ryzanstein.model_plan import ModelConfig, ModelError

from ..communication import CommunicationHandler
from .decoder import Decoder
from .layer_options import LayerRule
from .llama import llama_layer
from .mistral import mistral_layer
from .qwen2 import qwen2_layer
from .qwen3 import qwen3_layer

FAMILIES: dict[str, LayerRule] = {
    "llama": llama_layer,
    "mistral": mistral_layer,
    "qwen2": qwen2_layer,
    "qwen3": qwen3_layer,
}


def build_model(
    config: ModelConfig,
    handler: CommunicationHandler,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_positions: int | None = None,
    on_demand: bool = False,
) -> Decoder:
    """One rank's model, its parameters uninitialised. Arguments as of `Decoder`.

    Raises:
        ModelError: the family has no modules here, or the model can't be split over so many ranks.
    """
    rule = FAMILIES.get(config.family)
    if rule is None:
        raise ModelError(
            f"{config.architecture}: no modules for the family {config.family!r}; there are {', '.join(FAMILIES)}"
        )
    return Decoder(
        config, handler, dtype, device, layer_rule=rule, max_positions=max_positions, on_demand=on_demand
    )

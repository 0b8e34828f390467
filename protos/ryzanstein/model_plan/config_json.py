"""A model's configuration as text, for a host that has no checkpoint directory to read it from."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from .config import ModelConfig
from .fields import ModelError
from .rope import RopeScaling


def encode_model_config(config: ModelConfig) -> str:
    """One line of JSON that `decode_model_config` turns into an equal record."""
    return json.dumps(asdict(config), separators=(",", ":"), sort_keys=True)


def decode_model_config(text: str) -> ModelConfig:
    """The record that another process of the same release encoded. ModelError if it was a different one."""
    try:
        values: dict[str, Any] = json.loads(text)
        scaling = values["rope_scaling"]
        values["rope_scaling"] = None if scaling is None else RopeScaling(**scaling)
        for key in ("sliding_layers", "eos_token_ids"):  # JSON has no tuples
            values[key] = tuple(values[key])
        return ModelConfig(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"the model's configuration came in another form than this release writes ({error}); "
            "use the same release on all hosts"
        ) from None

"""The model that this coordinator serves, as read from its directory before anything else starts."""

from __future__ import annotations

from dataclasses import dataclass

from ryzanstein.model_plan import (
    ModelConfig,
    check_tensor_parallel_size,
    open_checkpoint,
    parameter_count,
    read_model_config,
)

from .config import OrchestratorConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What every worker must agree on, and what people are told."""

    name: str
    #: Absolute; workers without a copy of their own look there.
    path: str
    config: ModelConfig
    fingerprint: str
    parameters: int


def read_served_model(config: OrchestratorConfig) -> ServedModel:
    """Reads configuration and headers, and checks that the model can be split as asked.

    Raises:
        ModelError: the directory holds no model that can be served so; names the file and what to do.
    """
    directory = config.model_dir.resolve()
    model = read_model_config(directory)
    check_tensor_parallel_size(model, config.tensor_parallel_size)
    index = open_checkpoint(directory)
    index.check_against(model)
    return ServedModel(
        name=config.model_name,
        path=str(directory),
        config=model,
        fingerprint=index.fingerprint,
        parameters=parameter_count(model),
    )

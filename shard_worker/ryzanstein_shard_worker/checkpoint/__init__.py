"""Weights on disk and on their way: loading a rank's slices, splitting a checkpoint, sending shards.

torch is imported with the first name that needs it: the command line lists `ryzanstein shard` without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distributor import Read, WeightDistributor
    from .initializer import DistributedParameterInitializer, InitializationError
    from .loader import DistributedCheckpointLoader
    from .saver import CheckpointSaver

_HOMES = {
    "CheckpointSaver": "saver",
    "DistributedCheckpointLoader": "loader",
    "DistributedParameterInitializer": "initializer",
    "InitializationError": "initializer",
    "Read": "distributor",
    "WeightDistributor": "distributor",
}

__all__ = [
    "CheckpointSaver",
    "DistributedCheckpointLoader",
    "DistributedParameterInitializer",
    "InitializationError",
    "Read",
    "WeightDistributor",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

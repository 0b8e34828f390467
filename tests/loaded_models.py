"""Models of a checkpoint as the worker has them: built for a rank, loaded, packed."""

from __future__ import annotations

from pathlib import Path

import torch

from ryzanstein.model_plan import open_checkpoint, read_model_config
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.communication import CommunicationHandler
from ryzanstein_shard_worker.models import Decoder, build_model

CPU = torch.device("cpu")


def load_model(
    directory: Path, handler: CommunicationHandler, *, dtype: str = "float32", pack: bool = False
) -> Decoder:
    """One rank's model; packed, it works under torch.inference_mode() only."""
    config = read_model_config(directory)
    model = build_model(config, handler, getattr(torch, dtype), CPU)
    loader = DistributedCheckpointLoader(
        open_checkpoint(directory), config, handler.rank, handler.world_size, getattr(torch, dtype), CPU
    )
    loader.load(model, None, model.pack_module if pack else None)
    return model

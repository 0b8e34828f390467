"""A checkpoint's model on any device, as a worker has it: built, loaded, packed where that is done."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ryzanstein.model_plan import open_checkpoint, read_model_config
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.communication import CommunicationHandler, SingleHandler
from ryzanstein_shard_worker.models import Decoder, build_model
from ryzanstein_shard_worker.parallel import dense_causal_attend

CPU = torch.device("cpu")


def load_on(
    device: torch.device,
    directory: Path,
    dtype: torch.dtype,
    handler: CommunicationHandler | None = None,
    *,
    pack: bool = True,
) -> Decoder:
    """One rank's model; the only rank's unless a handler says otherwise."""
    handler = handler or SingleHandler()
    config = read_model_config(directory)
    model = build_model(config, handler, dtype, device)
    loader = DistributedCheckpointLoader(
        open_checkpoint(directory), config, handler.rank, handler.world_size, dtype, device
    )
    loader.load(model, None, model.pack_module if pack else None)
    return model


def logits_on(device: torch.device, model: Decoder, token_ids: Tensor) -> Tensor:
    """token_ids [T] on the CPU → logits [T, V] on the CPU, by attention that holds every score."""
    length = len(token_ids)
    with torch.inference_mode():
        hidden = model(
            token_ids.to(device),
            torch.arange(length, device=device),
            dense_causal_attend([length], model.sliding_windows),
        )
        return model.logits(hidden).cpu()

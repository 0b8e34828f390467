"""What the ranks' slices make together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ryzanstein_shard_worker.parallel import FeatureSlice

CPU = torch.device("cpu")
F32 = torch.float32


def joined(slices: Sequence[FeatureSlice], tensors: Sequence[Tensor | None], dim: int = 0) -> Tensor:
    """The undivided tensor, of one slice per rank; replicas must agree bit by bit and padding must be zero."""
    shape: list[int] | None = None
    whole = seen = torch.empty(0)
    for part, tensor in zip(slices, tensors, strict=True):
        assert tensor is not None
        if shape is None:
            shape = list(tensor.shape)
            shape[dim] = part.size
            whole, seen = tensor.new_zeros(shape), torch.zeros(part.size, dtype=torch.bool)
        assert tensor.shape[dim] == part.rows
        held = part.stop - part.start
        values, padding = torch.split(tensor, [held, part.rows - held], dim)
        assert not padding.any()
        place = whole.narrow(dim, part.start, held)
        if seen[part.start : part.stop].any():
            assert torch.equal(place, values)
        place.copy_(values)
        seen[part.start : part.stop] = True
    assert seen.all()
    return whole


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale

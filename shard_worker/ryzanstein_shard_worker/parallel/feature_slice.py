"""Which features of a projection a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ryzanstein.model_plan import split_range


@dataclass(frozen=True, slots=True)
class FeatureSlice:
    """A rank's part of one dimension of a weight."""

    size: int  #: of the dimension, over all ranks
    start: int  #: the rank holds [start, stop) of it,
    stop: int
    rows: int  #: in so many rows; those after stop - start are zero
    replicas: int = 1  #: neighbouring ranks that hold the same features

    def cut(self, full: Tensor, dim: int = 0) -> Tensor:
        """[.., size, ..] → a new [.., rows, ..]: the rank's part along `dim`, padded with zeros.

        Raises:
            ValueError: `full` has another size along `dim`.
        """
        if full.shape[dim] != self.size:
            raise ValueError(
                f"expected {self.size} features in dimension {dim}, got shape {tuple(full.shape)}"
            )
        shape = list(full.shape)
        shape[dim] = self.rows
        out = torch.zeros(shape, dtype=full.dtype, device=full.device)
        held = self.stop - self.start
        out.narrow(dim, 0, held).copy_(full.narrow(dim, self.start, held))
        return out


def even_slice(size: int, rank: int, world: int) -> FeatureSlice:
    """ceil(size / world) features per rank; the last ranks may have fewer, or none, and are padded."""
    start, stop = split_range(size, rank, world)
    return FeatureSlice(size, start, stop, -(-size // world))


def head_slice(heads: int, head_dim: int, rank: int, world: int) -> FeatureSlice:
    """Whole heads. With fewer heads than ranks, world / heads neighbours hold the same one.

    Raises:
        ValueError: neither number divides the other.
    """
    if heads % world == 0:
        rows = heads // world * head_dim
        return FeatureSlice(heads * head_dim, rank * rows, (rank + 1) * rows, rows)
    if world % heads:
        raise ValueError(f"{heads} heads can't be split over {world} ranks: neither divides the other")
    start = rank * heads // world * head_dim
    return FeatureSlice(heads * head_dim, start, start + head_dim, head_dim, replicas=world // heads)

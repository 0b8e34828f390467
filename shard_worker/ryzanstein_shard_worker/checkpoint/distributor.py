"""Which bytes of which file a rank needs, and where they go: pure, without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ryzanstein.model_plan import (
    Box,
    CheckpointIndex,
    ModelConfig,
    ParameterPlan,
    Piece,
    Placement,
    TensorEntry,
    check_tensor_parallel_size,
    parameters,
    placements,
)
from ryzanstein.model_plan.boxes import intersection, relative, sizes, subtract, uncovered, whole
from ryzanstein.model_plan.safetensors_header import DTYPE_BITS, FLOAT_DTYPES

#: Bytes of one element of the dtypes that weights may have in a file.
ITEM_BYTES = {dtype: DTYPE_BITS[dtype] // 8 for dtype in FLOAT_DTYPES}


@dataclass(frozen=True, slots=True)
class Read:
    """`parameter[target] = piece[source]`, where the piece is a row-major array in a file."""

    tensor: str
    file: int  #: index into `CheckpointIndex.files`
    begin: int  #: where the piece begins in the file
    dtype: str  #: as in the file: "BF16"
    shape: tuple[int, ...]  #: of the piece
    source: Box  #: within the piece
    parameter: str
    target: Box  #: within the parameter, of the same sizes

    @property
    def span(self) -> tuple[int, int]:
        """The bytes of the file from the first one needed to the last one."""
        first = last = 0
        for (start, stop), size in zip(self.source, self.shape, strict=True):
            first, last = first * size + start, last * size + stop - 1
        item_bytes = ITEM_BYTES[self.dtype]
        return self.begin + first * item_bytes, self.begin + (last + 1) * item_bytes

    @property
    def needed_bytes(self) -> int:
        """Bytes that are copied: less than the span's where only some columns are needed."""
        return math.prod(sizes(self.source)) * ITEM_BYTES[self.dtype]


class WeightDistributor:
    """Cuts the tensors of a checkpoint into the parameters of the ranks of a group.

    The checkpoint may be whole or split for any number of ranks; the group may have any size that splits the
    model. Attention is cut by whole heads, the rest by rows or columns as the plan says.

    Raises ModelError if the model can't be split over `world` ranks, or if the checkpoint is not of this
    model.
    """

    def __init__(self, index: CheckpointIndex, config: ModelConfig, world: int) -> None:
        check_tensor_parallel_size(config, world)
        index.check_against(config)
        self.index = index
        self.config = config
        self.world = world

    def parameters(self, rank: int, dtype: str | None = None) -> list[ParameterPlan]:
        """The rank's parameters, fused and padded, in the order of the model."""
        return parameters(self.config, rank, self.world, dtype)

    def reads(self, rank: int, chunk_bytes: int = 64 << 20) -> list[Read]:
        """Everything that the rank reads, in the order of files and bytes.

        A read spans about `chunk_bytes` at most (at least one row), so that progress is smooth and little of
        a file is mapped in at a time.
        """
        reads: list[Read] = []
        for placement in placements(self.config, rank, self.world):
            reads += (part for read in self.reads_of(placement, rank) for part in _rows(read, chunk_bytes))
        return sorted(reads, key=lambda read: (read.file, read.span))

    def reads_of(self, placement: Placement, rank: int) -> list[Read]:
        """The reads that make up a placement: one, unless its box is spread over several ranks' files."""
        entry = self.index.tensors[placement.tensor]
        left: list[Box] = [placement.source]
        reads: list[Read] = []
        for piece in self._by_preference(entry, rank):
            parts = (intersection(box, piece.box) for box in left)
            reads.extend(_read(entry, piece, part, placement) for part in parts if part)
            left = [part for box in left for part in subtract(box, piece.box)]
            if not left:
                break
        assert not left, f"{entry.name} is not covered"  # open_checkpoint has checked it
        return reads

    def padding(self, rank: int) -> dict[str, list[Box]]:
        """By parameter, the boxes that nothing is read into, which are zero. Full parameters are left out."""
        covers: dict[str, list[Box]] = {}
        for placement in placements(self.config, rank, self.world):
            covers.setdefault(placement.parameter, []).append(placement.target)
        holes = {
            plan.name: uncovered(whole(plan.shape), covers.get(plan.name, []))
            for plan in self.parameters(rank)
        }
        return {name: boxes for name, boxes in holes.items() if boxes}

    def _by_preference(self, entry: TensorEntry, rank: int) -> Sequence[Piece]:
        """Of replicas in several ranks' files, the one in the file that this rank reads most is first."""
        if self.index.tensor_parallel_size is None:
            return entry.pieces
        own = rank * self.index.tensor_parallel_size // self.world
        return sorted(entry.pieces, key=lambda piece: abs(piece.file - own))


def _read(entry: TensorEntry, piece: Piece, box: Box, placement: Placement) -> Read:
    shift = (target[0] - source[0] for target, source in zip(placement.target, placement.source, strict=True))
    target = tuple((start + by, stop + by) for (start, stop), by in zip(box, shift, strict=True))
    return Read(
        tensor=entry.name,
        file=piece.file,
        begin=piece.begin,
        dtype=entry.dtype,
        shape=sizes(piece.box),
        source=relative(box, piece.box),
        parameter=placement.parameter,
        target=target,
    )


def _rows(read: Read, chunk_bytes: int) -> list[Read]:
    """The read in parts of whole rows that span about `chunk_bytes`."""
    row_bytes = math.prod(read.shape[1:]) * ITEM_BYTES[read.dtype]
    step = max(1, chunk_bytes // row_bytes)
    (start, stop), (target, _) = read.source[0], read.target[0]
    if stop - start <= step:
        return [read]
    return [
        Read(
            read.tensor,
            read.file,
            read.begin,
            read.dtype,
            read.shape,
            ((low, min(low + step, stop)), *read.source[1:]),
            read.parameter,
            ((target + low - start, target + min(low + step, stop) - start), *read.target[1:]),
        )
        for low in range(start, stop, step)
    ]

"""Which bytes a rank reads: simulated over files of numbers, for random models and any pair of group sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ryzanstein.model_plan import (
    CheckpointFile,
    CheckpointIndex,
    ModelConfig,
    Piece,
    TensorEntry,
    parameters,
    placements,
    source_tensors,
    tensor_parallel_sizes,
)
from ryzanstein.model_plan.boxes import sizes, volume, whole
from ryzanstein_shard_worker.checkpoint import WeightDistributor
from tests.unit.model_plan.configs import records

from .weights import assert_same_bits, cut, random_tensors, slices


@st.composite
def plans(draw: st.DrawFn) -> tuple[ModelConfig, int | None, int, int]:
    """A model, the group size that its files are split for (None: not), that of the readers, and a chunk size."""
    config = draw(records())
    possible = tensor_parallel_sizes(config)
    stored = draw(st.sampled_from([None, *possible]))
    return config, stored, draw(st.sampled_from(possible)), draw(st.sampled_from([1, 20, 100, 10**9]))


def _files(
    config: ModelConfig, stored: int | None, tensors: dict[str, Tensor]
) -> tuple[CheckpointIndex, list[Tensor]]:
    """The index of files of float32 numbers, and their contents."""
    contents: list[list[Tensor]] = [[] for _ in range(stored or 1)]
    pieces: dict[str, list[Piece]] = {name: [] for name in tensors}
    boxes = [
        (rank, placement.tensor, placement.source)
        for rank in range(stored or 1)
        for placement in (placements(config, rank, stored) if stored else ())
    ] or [(0, name, whole(shape)) for name, shape in source_tensors(config).items()]
    for file, name, box in boxes:
        begin = sum(part.numel() for part in contents[file]) * 4
        contents[file].append(tensors[name][slices(box)].reshape(-1))
        pieces[name].append(Piece(file, begin, begin + volume(box) * 4, box))
    index = CheckpointIndex(
        Path(),
        tuple(CheckpointFile(Path(str(file)), 0, 0) for file in range(len(contents))),
        {
            name: TensorEntry(name, "F32", tuple(tensors[name].shape), tuple(parts))
            for name, parts in pieces.items()
        },
        stored,
    )
    return index, [torch.cat(parts) for parts in contents]


@settings(max_examples=60)
@given(plans())
def test_any_number_of_ranks_reads_from_files_for_any_number(
    plan: tuple[ModelConfig, int | None, int, int],
) -> None:
    config, stored, world, chunk_bytes = plan
    tensors = random_tensors(config)
    index, contents = _files(config, stored, tensors)
    distributor = WeightDistributor(index, config, world)
    for rank in range(world):
        found = {p.name: torch.full(p.shape, torch.nan) for p in parameters(config, rank, world)}
        for name, boxes in distributor.padding(rank).items():
            for box in boxes:
                found[name][slices(box)] = 0
        reads = distributor.reads(rank, chunk_bytes)
        assert [(read.file, read.span) for read in reads] == sorted((read.file, read.span) for read in reads)
        for read in reads:
            assert sizes(read.source) == sizes(read.target)
            assert read.needed_bytes == volume(read.source) * 4
            piece = contents[read.file][read.begin // 4 :][: volume(whole(read.shape))].view(read.shape)
            part = piece[slices(read.source)]
            first, last = (end // 4 for end in read.span)
            assert set(part.reshape(-1).tolist()) <= set(contents[read.file][first:last].tolist())
            row_bytes = piece[0].numel() * 4 if piece.dim() > 1 else 4
            assert read.span[1] - read.span[0] <= max(chunk_bytes, row_bytes)
            assert found[read.parameter][slices(read.target)].isnan().all(), "nothing is read twice"
            found[read.parameter][slices(read.target)] = part
        assert_same_bits(found, cut(tensors, config, rank, world, torch.float32))


@given(plans())
def test_files_for_as_many_ranks_are_each_read_by_their_own(
    plan: tuple[ModelConfig, int | None, int, int],
) -> None:
    config, _, world, chunk_bytes = plan
    index, contents = _files(config, world, random_tensors(config))
    distributor = WeightDistributor(index, config, world)
    for rank in range(world):
        reads = distributor.reads(rank, chunk_bytes)
        assert {read.file for read in reads} <= {rank}
        position = 0
        for read in reads:  # from front to back, without a gap
            assert read.span[0] == position
            position = read.span[1]
        assert position == contents[rank].numel() * 4


@given(plans())
def test_a_shrinking_group_reads_no_more_files_than_it_has_to(
    plan: tuple[ModelConfig, int | None, int, int],
) -> None:
    config, _, world, _ = plan
    stored = max(tensor_parallel_sizes(config))
    index, _ = _files(config, stored, random_tensors(config))
    if config.num_heads % world == 0 and stored % world == 0:
        for rank in range(world):
            norms = [
                read for read in WeightDistributor(index, config, world).reads(rank) if "norm" in read.tensor
            ]
            assert {read.file for read in norms} == {rank * stored // world}

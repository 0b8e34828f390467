"""Writes a checkpoint as one file per rank, from a whole one or one split for another number of ranks."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ryzanstein.model_plan import Box, CheckpointIndex, ModelConfig, Placement, placements
from ryzanstein.model_plan.boxes import sizes
from ryzanstein.model_plan.layouts import RANKS_FILE, RANKS_VERSION, rank_file_name

from .distributor import WeightDistributor
from .mapped_file import TORCH_DTYPES, MappedFile
from .output_directory import new_directory
from .safetensors_writer import StoredTensor, encode_header, write_safetensors

_CHUNK_BYTES = 64 << 20

#: What a split copy keeps of the other files: configuration, tokenizer, texts.
_KEPT_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".md"}
_KEPT_NAMES = {"LICENSE", "NOTICE", "USE_POLICY"}
_KEPT_DIRECTORIES = ("additional_chat_templates",)


class CheckpointSaver:
    """Splits a checkpoint for `world` ranks.

    Rank r's file holds the parts of Hugging Face's tensors that the rank needs, unpadded, in the order of the
    model; replicated tensors are in every file, so that a rank reads its own file and no other.
    `ryzanstein_shards.json` says which part is where: any other number of ranks can be loaded or split from
    it. Tensors that the model does not use are left out.

    Raises ModelError if the model can't be split so, or if the checkpoint is not of this model.
    """

    def __init__(self, index: CheckpointIndex, config: ModelConfig, world: int) -> None:
        self._distributor = WeightDistributor(index, config, world)
        self._index = index
        self._world = world
        self._plans = [placements(config, rank, world) for rank in range(world)]

    @property
    def needed_bytes(self) -> int:
        """Bytes of the files that `save` writes."""
        weights = sum(
            len(encode_header(stored)) + sum(tensor.size_bytes for tensor in stored)
            for stored in (self._stored(rank) for rank in range(self._world))
        )
        kept = sum(path.stat().st_size for path in self._kept_files())
        return weights + kept + len(self._describe())

    def save(self, directory: Path, progress: Callable[[float], None] | None = None) -> None:
        """Writes the directory, which must not exist (or be empty): complete, or not at all.

        `progress` is told the written fraction of the weights; what it raises ends the writing.
        Raises OutputError (exists, disk full, ...) and ModelError (a file of the source changed meanwhile).
        """
        total = sum(tensor.size_bytes for rank in range(self._world) for tensor in self._stored(rank))
        done = 0
        with new_directory(directory, self.needed_bytes) as partial, ExitStack() as stack:
            mapped = [stack.enter_context(MappedFile(file)) for file in self._index.files]
            for rank in range(self._world):

                def data(rank: int = rank) -> Iterator[Tensor]:
                    nonlocal done
                    for part in self._data(rank, mapped):
                        yield part
                        done += part.numel() * part.element_size()
                        if progress is not None:
                            progress(done / total)

                write_safetensors(partial / rank_file_name(rank, self._world), self._stored(rank), data())
            self._copy_kept_files(partial)
            (partial / RANKS_FILE).write_bytes(self._describe())

    def _stored(self, rank: int) -> list[StoredTensor]:
        return [
            StoredTensor(placement.tensor, self._dtype(placement), sizes(placement.source))
            for placement in self._plans[rank]
        ]

    def _dtype(self, placement: Placement) -> str:
        return self._index.tensors[placement.tensor].dtype

    def _data(self, rank: int, mapped: list[MappedFile]) -> Iterator[Tensor]:
        """The rank's tensors in rows of about 64 MiB, whatever files their parts come from."""
        for placement in self._plans[rank]:
            dtype = TORCH_DTYPES[self._dtype(placement)]
            (first, last), *columns = placement.source
            row_bytes = math.prod(sizes(tuple(columns))) * dtype.itemsize
            step = max(1, _CHUNK_BYTES // max(1, row_bytes))
            for low in range(first, last, step):
                box: Box = ((low, min(low + step, last)), *columns)
                yield self._assemble(box, placement, rank, dtype, mapped)

    def _assemble(
        self, box: Box, placement: Placement, rank: int, dtype: torch.dtype, mapped: list[MappedFile]
    ) -> Tensor:
        here = tuple((0, size) for size in sizes(box))
        part = torch.empty(sizes(box), dtype=dtype)
        for read in self._distributor.reads_of(replace(placement, source=box, target=here), rank):
            part[tuple(slice(*side) for side in read.target)] = mapped[read.file].view(read)
            mapped[read.file].release(*read.span)
        return part

    def _describe(self) -> bytes:
        """The contents of ryzanstein_shards.json."""
        boxes: dict[str, list[Box | None]] = {}
        for rank, plan in enumerate(self._plans):
            for placement in plan:
                boxes.setdefault(placement.tensor, [None] * self._world)[rank] = placement.source
        description = {
            "version": RANKS_VERSION,
            "tensor_parallel_size": self._world,
            "files": [rank_file_name(rank, self._world) for rank in range(self._world)],
            "tensors": {
                name: {
                    "dtype": self._index.tensors[name].dtype,
                    "shape": self._index.tensors[name].shape,
                    "boxes": of_ranks,  # per rank (start, stop) of each dimension; null: nothing of it
                }
                for name, of_ranks in boxes.items()
            },
        }
        return json.dumps(description, separators=(",", ":")).encode() + b"\n"

    def _kept_files(self) -> list[Path]:
        source = self._index.directory
        kept = [path for path in source.iterdir() if path.is_file() and _is_kept(path)]
        for name in _KEPT_DIRECTORIES:
            kept += (path for path in (source / name).glob("*") if path.is_file())
        return sorted(kept)

    def _copy_kept_files(self, directory: Path) -> None:
        for path in self._kept_files():
            copy = directory / path.relative_to(self._index.directory)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)


def _is_kept(path: Path) -> bool:
    is_index = path.name.endswith(".index.json") or path.name == RANKS_FILE
    named = path.suffix.lower() in _KEPT_SUFFIXES or path.stem.upper() in _KEPT_NAMES
    return named and not is_index and not path.name.startswith(".")

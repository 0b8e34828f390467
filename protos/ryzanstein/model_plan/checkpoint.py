"""Where every tensor of a checkpoint lies: which bytes of which file, and which part of the tensor they are.

Three layouts are read: `model.safetensors`; several files with `model.safetensors.index.json`; and one file
per rank with `ryzanstein_shards.json`, as `ryzanstein shard` writes them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from .boxes import Box, intersection, relative, sizes, uncovered, volume, whole
from .config import ModelConfig, read_model_config
from .fields import ModelError
from .safetensors_header import DTYPE_BITS, FLOAT_DTYPES
from .tensors import source_tensors

#: Elements of a tensor that go into the fingerprint.
_SAMPLE = 16


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """A file as it was when its header was read; a reader checks that it still is the same."""

    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The part `box` of a tensor, row-major in the bytes [begin, end) of a file."""

    file: int  #: index into `CheckpointIndex.files`
    begin: int
    end: int
    box: Box


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the checkpoint. Its pieces cover it; of one layout they may overlap (replicas)."""

    name: str
    dtype: str  #: as in the file: "BF16"
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class CheckpointIndex:
    """The tensors of a checkpoint directory; `open_checkpoint` makes it."""

    directory: Path
    files: tuple[CheckpointFile, ...]
    tensors: Mapping[str, TensorEntry]
    #: Of one file per rank, where file i is rank i's; None for Hugging Face's layouts.
    tensor_parallel_size: int | None = field(default=None)

    @cached_property
    def fingerprint(self) -> str:
        """Tells checkpoints apart: a hash of config.json and of every tensor that the model uses.

        Of a tensor it takes name, dtype, shape and 16 values from the middle: enough to tell a fine-tune from
        its base, and the same in a copy that was split for ranks. Damage elsewhere in the data goes unseen.
        Raises ModelError as `read_model_config` and `check_against`.
        """
        config = read_model_config(self.directory)
        self.check_against(config)
        digest = hashlib.sha256((self.directory / "config.json").read_bytes())
        with _Samples(self) as samples:
            for name in sorted(source_tensors(config)):
                entry = self.tensors[name]
                digest.update(f"\n{name} {entry.dtype} {entry.shape} ".encode())
                digest.update(samples.middle(entry))
        return digest.hexdigest()

    def check_against(self, config: ModelConfig) -> None:
        """Checks that every tensor of the model is there with its shape and a dtype that can be loaded.

        Raises ModelError, which names file and tensor. A bias or norm that the model would ignore is an error
        too: then config.json and the weights are not of one model.
        """
        expected = source_tensors(config)
        for name, shape in expected.items():
            entry = self.tensors.get(name)
            if entry is None:
                raise ModelError(
                    f"{self.directory}: tensor {name} is missing; {config.architecture} needs it, "
                    "fetch the checkpoint again or correct config.json"
                )
            where = self._where(entry)
            if entry.shape != shape:
                raise ModelError(
                    f"{where}: has shape {list(entry.shape)}, config.json means {list(shape)}; "
                    "is config.json of another model?"
                )
            if entry.dtype not in FLOAT_DTYPES:
                raise ModelError(
                    f"{where}: has dtype {entry.dtype}; supported are {', '.join(FLOAT_DTYPES)} "
                    "(quantized checkpoints are not)"
                )
        self._check_unused(config, expected)
        if config.tie_word_embeddings:
            self._check_tied(config)

    def _where(self, entry: TensorEntry) -> str:
        path = self.files[entry.pieces[0].file].path if entry.pieces else self.directory
        return f"{path}: tensor {entry.name}"

    def _check_unused(self, config: ModelConfig, expected: Mapping[str, object]) -> None:
        layers = {f"model.layers.{layer}" for layer in range(config.num_layers)}
        for name, entry in self.tensors.items():
            inside = ".".join(name.split(".")[:3]) in layers or name == "lm_head.bias"
            if name not in expected and inside and name.endswith((".bias", "norm.weight")):
                raise ModelError(
                    f"{self._where(entry)} has no place in a {config.architecture} with this config.json; "
                    "is it of another model?"
                )

    def _check_tied(self, config: ModelConfig) -> None:
        """transformers doesn't tie a head that is stored and differs: then config.json is wrong."""
        head, embedding = self.tensors.get("lm_head.weight"), self.tensors["model.embed_tokens.weight"]
        if head is None or head.shape != embedding.shape or head.dtype != embedding.dtype:
            return
        with _Samples(self) as samples:
            if samples.middle(head) != samples.middle(embedding):
                raise ModelError(
                    f"{self.directory / 'config.json'}: tie_word_embeddings is true, but lm_head.weight is "
                    "stored and differs from model.embed_tokens.weight; set it to false"
                )


class _Samples:
    """Reads a few elements of tensors; keeps the files open meanwhile."""

    def __init__(self, index: CheckpointIndex) -> None:
        self._index = index
        self._open: dict[int, BinaryIO] = {}

    def __enter__(self) -> _Samples:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def middle(self, entry: TensorEntry) -> bytes:
        """Bytes of up to 16 neighbouring elements around the tensor's middle, whatever pieces hold them."""
        total = volume(whole(entry.shape))
        position = max(0, total // 2 - _SAMPLE // 2)
        end = min(total, position + _SAMPLE)
        data = b""
        while position < end:
            run = self._run(entry, position, end - position)
            data += run
            position += len(run) * 8 // DTYPE_BITS[entry.dtype]
        return data

    def _run(self, entry: TensorEntry, flat: int, most: int) -> bytes:
        """Elements from the row-major position `flat` on, as far as they are neighbours in a file too."""
        at: Box = ()
        for size in reversed(entry.shape):
            at, flat = ((flat % size, flat % size + 1), *at), flat // size
        item_bytes = DTYPE_BITS[entry.dtype] // 8
        piece = next(piece for piece in entry.pieces if intersection(piece.box, at))
        offset = 0
        for (start, _), size in zip(relative(at, piece.box), sizes(piece.box), strict=True):
            offset = offset * size + start
        count = min(most, piece.box[-1][1] - at[-1][0]) if at else 1
        return self._read(piece.file, piece.begin + offset * item_bytes, count * item_bytes)

    def _read(self, file: int, offset: int, count: int) -> bytes:
        path = self._index.files[file].path
        try:
            if file not in self._open:
                self._open[file] = path.open("rb")  # buffered: neighbours cost one read
            self._open[file].seek(offset)
            data = self._open[file].read(count)
        except OSError as error:
            raise ModelError(f"{path}: can't be read: {error.strerror or error}") from None
        if len(data) < count:
            raise ModelError(
                f"{path}: became shorter since its header was read; is something still writing it?"
            )
        return data


def file_state(path: Path, stat: os.stat_result) -> CheckpointFile:
    """What identifies the file's content without reading it."""
    return CheckpointFile(path, stat.st_size, stat.st_mtime_ns)


def check_coverage(entry: TensorEntry, where: Path) -> None:
    """Raises ModelError unless the pieces cover the tensor."""
    left = uncovered(whole(entry.shape), [piece.box for piece in entry.pieces])
    if left:
        raise ModelError(f"{where}: tensor {entry.name}: no file has its part {[list(r) for r in left[0]]}")

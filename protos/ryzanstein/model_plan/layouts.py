"""Finding the files of a checkpoint: one file, several with an index, or one per rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .boxes import Box, is_within, sizes, whole
from .checkpoint import CheckpointFile, CheckpointIndex, Piece, TensorEntry, check_coverage, file_state
from .fields import Fields, ModelError, describe, read_json_object
from .safetensors_header import DTYPE_BITS, SafetensorsHeader, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
RANKS_FILE = "ryzanstein_shards.json"
RANKS_VERSION = 1


def rank_file_name(rank: int, world: int) -> str:
    """The name of a rank's file among those that `ryzanstein shard` writes."""
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def open_checkpoint(directory: Path) -> CheckpointIndex:
    """Reads the headers of the directory's safetensors files and checks them against the files' sizes.

    Only headers are read. Raises ModelError, which names the file, and the tensor where it is about one.
    """
    try:
        return _open(directory)
    except OSError as error:  # of looking for the files; reading them names the one that fails
        raise ModelError(f"{directory}: can't be read: {error.strerror or error}") from None


def _open(directory: Path) -> CheckpointIndex:
    if not directory.is_dir():
        raise ModelError(f"{directory}: is not a directory; give the directory of a Hugging Face checkpoint")
    if (directory / RANKS_FILE).exists():
        return _open_ranks(directory)
    if (directory / SINGLE_FILE).exists():
        header, state = _header(directory / SINGLE_FILE)
        entries = {name: _entry_of(header, name, 0) for name in header.tensors}
        return CheckpointIndex(directory, (state,), entries)
    if (directory / INDEX_FILE).exists():
        return _open_sharded(directory)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pth")):
        raise ModelError(
            f"{directory}: has weights in pickle files only, which can run code when read; convert them with "
            "transformers: from_pretrained(...).save_pretrained(...) writes safetensors"
        )
    raise ModelError(f"{directory}: has neither {SINGLE_FILE} nor {INDEX_FILE} nor {RANKS_FILE}")


def _header(path: Path) -> tuple[SafetensorsHeader, CheckpointFile]:
    header = read_header(path)
    state = file_state(path, path.stat())
    if state.size_bytes != header.size_bytes:
        raise ModelError(f"{path}: its size changes while it is read; is something still writing it?")
    return header, state


def _entry_of(header: SafetensorsHeader, name: str, file: int) -> TensorEntry:
    entry = header.tensors[name]
    return TensorEntry(
        name, entry.dtype, entry.shape, (Piece(file, entry.begin, entry.end, whole(entry.shape)),)
    )


def _open_sharded(directory: Path) -> CheckpointIndex:
    path = directory / INDEX_FILE
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path}: weight_map: must be an object of tensor names, is {describe(weight_map)}")
    used = {_plain_name(path, f"weight_map.{tensor}", name) for tensor, name in weight_map.items()}
    names = {name: file for file, name in enumerate(sorted(used))}
    opened = [_header(directory / name) for name in names]
    entries: dict[str, TensorEntry] = {}
    for tensor, file_name in weight_map.items():
        header = opened[names[file_name]][0]
        if tensor not in header.tensors:
            raise ModelError(
                f"{header.path}: tensor {tensor} is missing, though {INDEX_FILE} says it is here"
            )
        entries[tensor] = _entry_of(header, tensor, names[file_name])
    return CheckpointIndex(directory, tuple(state for _, state in opened), entries)


def _open_ranks(directory: Path) -> CheckpointIndex:
    path = directory / RANKS_FILE
    fields = Fields(path, read_json_object(path))
    version = fields.integer("version")
    if version != RANKS_VERSION:
        fields.fail(
            "version", f"is {version}, this release reads {RANKS_VERSION}; run `ryzanstein shard` again"
        )
    world = fields.integer("tensor_parallel_size", maximum=2**20)
    files = fields.optional_strings("files") or ()
    if len(files) != world:
        fields.fail("files", f"must name one file per rank, {world}, names {len(files)}")
    opened = [_header(directory / _plain_name(path, "files", name)) for name in files]
    tensors = fields.optional_object("tensors")
    if tensors is None:
        fields.fail("tensors", "is missing; run `ryzanstein shard` again")
    entries = {name: _rank_entry(tensors, name, opened) for name in tensors.values}
    return CheckpointIndex(directory, tuple(state for _, state in opened), entries, world)


def _rank_entry(
    tensors: Fields, name: str, opened: list[tuple[SafetensorsHeader, CheckpointFile]]
) -> TensorEntry:
    description = tensors.optional_object(name)
    if description is None:
        tensors.fail(name, "must be an object")
    dtype = description.optional_string("dtype")
    if dtype not in DTYPE_BITS:
        description.fail("dtype", f"{dtype!r} is unknown")
    shape = tuple(_sizes(description, "shape", description.values.get("shape")))
    boxes = description.values.get("boxes")
    if not isinstance(boxes, list) or len(boxes) != len(opened):
        description.fail("boxes", f"must be a list of one box per rank, is {describe(boxes)}")
    pieces = []
    for file, (value, (header, _)) in enumerate(zip(boxes, opened, strict=True)):
        if value is None:  # so small a tensor that this rank has nothing of it
            continue
        box = _box(description, value, shape)
        entry = header.tensors.get(name)
        if entry is None:
            raise ModelError(f"{header.path}: tensor {name} is missing, though {RANKS_FILE} says it is here")
        if (entry.dtype, entry.shape) != (dtype, sizes(box)):
            raise ModelError(
                f"{header.path}: tensor {name}: is {entry.dtype} {list(entry.shape)}, "
                f"{RANKS_FILE} says {dtype} {list(sizes(box))}; run `ryzanstein shard` again"
            )
        pieces.append(Piece(file, entry.begin, entry.end, box))
    result = TensorEntry(name, dtype, shape, tuple(pieces))
    check_coverage(result, tensors.file)
    return result


def _box(fields: Fields, value: object, shape: tuple[int, ...]) -> Box:
    ranges = value if isinstance(value, list) else []
    pairs = [_sizes(fields, "boxes", item) for item in ranges]
    box = tuple((pair[0], pair[1]) for pair in pairs if len(pair) == 2)
    if len(box) != len(pairs) or not isinstance(value, list) or not is_within(box, shape):
        fields.fail("boxes", f"{describe(value)} is not a part of the shape {list(shape)}")
    return box


def _sizes(fields: Fields, key: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 2**63 for item in value):
        fields.fail(key, f"must be a list of sizes, is {describe(value)}")
    return value


def _plain_name(index: Path, key: str, name: object) -> str:
    """Refuses names that lead out of the directory. Links are followed: the hub's cache is made of them."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise ModelError(f"{index}: {key}: must be the name of a file beside it, is {describe(name)}")
    return name

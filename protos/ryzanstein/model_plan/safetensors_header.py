"""The header of a safetensors file, read without torch or numpy and checked against the file's size.

Format (https://huggingface.co/docs/safetensors): 8 bytes with the header's length, little endian; the header,
a JSON object {name: {dtype, shape, data_offsets: [begin, end]}} with an optional "__metadata__" of strings;
then the data, which the tensors cover without gap or overlap.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fields import ModelError, describe

#: The bound of the reference implementation.
MAX_HEADER_BYTES = 100_000_000

#: Bits of one element, by the names of the format.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

#: Those that a model's weights may have, and their names everywhere else in this project.
FLOAT_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

_MAX_RANK = 16  # dimensions; more is nonsense, and shapes are multiplied


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """One tensor of a file: its bytes are [begin, end) counted from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a file holds. `raw` is the header's JSON as it stands in the file."""

    path: Path
    size_bytes: int
    data_begin: int
    tensors: dict[str, HeaderEntry]  #: in the order of their bytes
    raw: bytes


def read_header(path: Path) -> SafetensorsHeader:
    """Reads and checks the header; ModelError names the file, and the tensor where it is about one."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise ModelError(
                    f"{path}: has {size_bytes} bytes, too few for a safetensors file; fetch it again"
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise ModelError(
                    f"{path}: declares a header of {length} bytes (at most {MAX_HEADER_BYTES}): "
                    "not a safetensors file, or a damaged one"
                )
            if 8 + length > size_bytes:
                raise ModelError(
                    f"{path}: is truncated: its header ends at byte {8 + length}, "
                    f"the file at byte {size_bytes}; fetch it again"
                )
            raw = file.read(length)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file, though the checkpoint needs it; fetch it") from None
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from None
    if len(raw) < length:
        raise ModelError(f"{path}: became shorter while its header was read; is something still writing it?")
    tensors = _parse(path, raw, 8 + length)
    _check_layout(path, tensors, 8 + length, size_bytes)
    return SafetensorsHeader(path, size_bytes, 8 + length, tensors, raw)


def first_float_dtype(directory: Path) -> str | None:
    """The dtype of the first floating-point tensor in the directory's safetensors files, None without any."""
    for path in sorted(directory.glob("*.safetensors")):
        for entry in read_header(path).tensors.values():
            if entry.dtype in FLOAT_DTYPES:
                return FLOAT_DTYPES[entry.dtype]
    return None


def byte_length(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None where its bits don't fill whole bytes (sub-byte dtypes)."""
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
    return None if bits % 8 else bits // 8


def _parse(path: Path, raw: bytes, data_begin: int) -> dict[str, HeaderEntry]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"{path}: its header is not valid JSON ({error}); fetch the file again") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: its header must be a JSON object, is {describe(header)}")
    header.pop("__metadata__", None)  # free text of whoever wrote the file
    entries = {name: _entry(path, name, value, data_begin) for name, value in header.items()}
    return dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:  # json would silently keep the last one
            raise ValueError(f"{key!r} occurs twice")
        values[key] = value
    return values


def _entry(path: Path, name: str, value: object, data_begin: int) -> HeaderEntry:
    def wrong(problem: str) -> ModelError:
        return ModelError(f"{path}: tensor {name}: {problem}; the file is damaged, fetch it again")

    if not isinstance(value, dict):
        raise wrong(f"must be an object in the header, is {describe(value)}")
    dtype, shape, offsets = (value.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise wrong(f"has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(_is_size(size) for size in shape):
        raise wrong(f"has the shape {describe(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise wrong(f"has the data_offsets {describe(offsets)}")
    begin, end = offsets
    expected = byte_length(dtype, tuple(shape))
    if expected is None or end - begin != expected:
        raise wrong(f"occupies {end - begin} bytes, but {dtype} {shape} needs {expected}")
    return HeaderEntry(dtype, tuple(shape), data_begin + begin, data_begin + end)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64


def _check_layout(path: Path, tensors: dict[str, HeaderEntry], data_begin: int, size_bytes: int) -> None:
    position, before = data_begin, "the header"
    for name, entry in tensors.items():
        if entry.end > size_bytes:
            raise ModelError(
                f"{path}: is truncated: tensor {name} ends at byte {entry.end}, "
                f"the file at byte {size_bytes}; fetch it again"
            )
        if entry.begin != position:
            problem = "overlaps" if entry.begin < position else "leaves a gap after"
            raise ModelError(f"{path}: tensor {name} {problem} {before}; the file is damaged, fetch it again")
        position, before = entry.end, f"tensor {name}"
    if position != size_bytes:
        raise ModelError(
            f"{path}: {size_bytes - position} bytes follow {before}; the file is damaged, fetch it again"
        )

"""Writes a safetensors file piece by piece, so that it may be larger than memory."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ryzanstein.model_plan.safetensors_header import DTYPE_BITS


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What a file's header says about one tensor; `dtype` is the format's name, such as "BF16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def encode_header(tensors: Sequence[StoredTensor]) -> bytes:
    """The file's beginning: the header's length, and the header, padded so that the data is aligned."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, tensors: Sequence[StoredTensor], data: Iterable[Tensor]) -> None:
    """Writes a new file and waits until the disk has it.

    `data` gives the tensors' elements in order, in contiguous CPU tensors of any size, in the stored dtypes.
    Raises OSError as the file system does, and ValueError if `data` has another length than the header says.
    """
    expected = sum(tensor.size_bytes for tensor in tensors)
    with path.open("xb") as file:
        file.write(encode_header(tensors))
        for part in data:
            raw = part.reshape(-1).view(torch.uint8)
            expected -= raw.numel()
            file.write(raw.numpy().data)
        if expected:
            raise ValueError(f"{path}: {expected} bytes of data are missing")
        file.flush()
        os.fsync(file.fileno())

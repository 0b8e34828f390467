"""How fast a rank's weights come from files into the device, the page cache warm and cold.

    python -m benchmarks.loading [--device cuda:0] [--shape 8b] [--layers 8] [--json FILE]

Writes a checkpoint with random weights below --work once. "Cold" asks the kernel to drop the files' pages first; where
it does not (some sandboxes), cold and warm come out the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ryzanstein.model_plan import ModelConfig, open_checkpoint, read_model_config, source_tensors
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.checkpoint.page_cache import drop_pages
from ryzanstein_shard_worker.checkpoint.safetensors_writer import StoredTensor, write_safetensors
from ryzanstein_shard_worker.communication import SingleHandler
from ryzanstein_shard_worker.models import build_model

from .devices import choose_device, device_name, wait_for
from .shapes import SHAPES, write_config


@dataclass(frozen=True, slots=True)
class Loading:
    """Seconds until the model is complete on the device; its modules' allocation not counted."""

    device: str
    shape: str
    layers: int
    file_bytes: int
    cold_s: float
    warm_s: float
    warm_bytes_per_s: float


def write_checkpoint(directory: Path, shape: str, layers: int) -> Path:
    """One safetensors file in bfloat16; a complete one of the same size is kept."""
    config = write_config(directory, shape, layers=layers)
    stored = [
        StoredTensor(name, "BF16", tensor_shape) for name, tensor_shape in source_tensors(config).items()
    ]
    path = directory / "model.safetensors"
    if path.is_file() and path.stat().st_size > sum(tensor.size_bytes for tensor in stored):
        return path
    partial = path.with_suffix(".partial")
    write_safetensors(partial, stored, _random(stored))
    partial.rename(path)
    return path


def _random(stored: list[StoredTensor]) -> Iterator[Tensor]:
    """Each tensor's numbers: the beginning of one long row, so that writing is not slower than the disk."""
    longest = max(tensor.size_bytes // 2 for tensor in stored)
    numbers = torch.empty(longest, dtype=torch.bfloat16).normal_(0.0, 0.02)
    for tensor in stored:
        yield numbers[: tensor.size_bytes // 2].view(tensor.shape)


def load(path: Path, config: ModelConfig, device: torch.device) -> float:
    """Seconds of one load, as a worker does it."""
    model = build_model(config, SingleHandler(), torch.bfloat16, device, max_positions=4096)
    index = open_checkpoint(path.parent)
    wait_for(device)
    started_at = time.perf_counter()
    DistributedCheckpointLoader(index, config, 0, 1, torch.bfloat16, device).load(
        model, None, model.pack_module
    )
    wait_for(device)
    return time.perf_counter() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="8b")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ryzanstein-benchmarks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    path = write_checkpoint(options.work / f"{options.shape}-{options.layers}", options.shape, options.layers)
    config = read_model_config(path.parent)
    drop_pages([path])
    cold_s = load(path, config, device)
    warm_s = statistics.median(load(path, config, device) for _ in range(options.repeats))
    size = path.stat().st_size
    result = Loading(
        device=device_name(device),
        shape=options.shape,
        layers=config.num_layers,
        file_bytes=size,
        cold_s=cold_s,
        warm_s=warm_s,
        warm_bytes_per_s=size / warm_s,
    )
    print(
        f"{result.device}: {size / 1e9:.2f} GB ({result.layers} layers of {options.shape}) in {cold_s:.2f} s cold, "
        f"{warm_s:.2f} s warm: {result.warm_bytes_per_s / 1e9:.1f} GB/s"
    )
    if options.json:
        options.json.write_text(json.dumps(asdict(result), indent=2))


if __name__ == "__main__":
    main()

"""The peak of memory while a rank loads: its weights and little more, however large the file is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ryzanstein.model_plan import read_model_config, source_tensors, weight_bytes_per_rank
from ryzanstein_shard_worker.checkpoint.safetensors_writer import StoredTensor, encode_header
from tests.unit.model_plan.configs import LLAMA, write_config

_MIB = 1 << 20

#: Loads rank 1 of 2 and prints by how much the process's peak grew, in bytes: all of it, mapped pages included.
_SCRIPT = """
import sys
from pathlib import Path
import torch
from ryzanstein.model_plan import open_checkpoint, read_model_config
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader

def memory(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
directory = Path(sys.argv[1])
loader = DistributedCheckpointLoader(
    open_checkpoint(directory), read_model_config(directory), 1, 2, torch.bfloat16, torch.device("cpu"),
    chunk_bytes=4 << 20,
)
tensors = loader.allocate()
release = (lambda name: [tensors.pop(key) for key in list(tensors) if key.startswith(name + ".")])
before = memory("VmRSS")
loader.fill(tensors, on_layer_complete=release if sys.argv[2] == "release" else None)
print(memory("VmHWM") - before)
"""


#: The same as a worker does it: each layer is rounded as soon as it is there.
_EIGHT_BITS = """
import sys
from pathlib import Path
import torch
from ryzanstein.model_plan import open_checkpoint, read_model_config
from ryzanstein_shard_worker.checkpoint import DistributedCheckpointLoader
from ryzanstein_shard_worker.communication import RebindableHandler
from ryzanstein_shard_worker.freed_memory import give_freed_memory_back
from ryzanstein_shard_worker.models import build_model

def memory(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
give_freed_memory_back()
directory, cpu = Path(sys.argv[1]), torch.device("cpu")
config = read_model_config(directory)
model = build_model(config, RebindableHandler(1, 2), torch.bfloat16, cpu, max_positions=64)
loader = DistributedCheckpointLoader(open_checkpoint(directory), config, 1, 2, torch.bfloat16, cpu, chunk_bytes=4 << 20)
before = memory("VmRSS")
loader.load(model, None, lambda module: model.pack_module(module, quantization=sys.argv[2]))
print(memory("VmHWM") - before)
"""


def _sparse_checkpoint(directory: Path, layers: int = 8) -> Path:
    """About 200 MiB of zeros that take no space on disk."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": layers, "vocab_size": 4096}
    write_config(directory, {**LLAMA, **sizes})
    tensors = source_tensors(read_model_config(directory))
    stored = [StoredTensor(name, "BF16", shape) for name, shape in sorted(tensors.items())]
    with (directory / "model.safetensors").open("wb") as file:
        file.write(encode_header(stored))
        file.truncate(file.tell() + sum(tensor.size_bytes for tensor in stored))
    return directory


def _peak_bytes(directory: Path, mode: str, script: str = _SCRIPT) -> int:
    command = [sys.executable, "-c", script, str(directory), mode]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))  # log lines may stand before it


def test_a_rank_holds_its_weights_once_and_nothing_of_the_file(tmp_path: Path) -> None:
    directory = _sparse_checkpoint(tmp_path)
    weights_bytes = weight_bytes_per_rank(read_model_config(directory), 2)
    assert weights_bytes > 80 * _MIB
    peak_bytes = _peak_bytes(directory, "keep")
    assert weights_bytes - 8 * _MIB < peak_bytes < weights_bytes + 32 * _MIB


def test_layers_that_are_taken_over_at_once_leave_room_for_one_layer(tmp_path: Path) -> None:
    directory = _sparse_checkpoint(tmp_path)
    layer_bytes = weight_bytes_per_rank(read_model_config(directory), 2) / 8
    assert _peak_bytes(directory, "release") < 2 * layer_bytes + 32 * _MIB


def test_weights_that_are_rounded_on_the_way_are_never_all_there_unrounded(tmp_path: Path) -> None:
    directory = _sparse_checkpoint(tmp_path, layers=20)
    config = read_model_config(directory)
    unrounded = weight_bytes_per_rank(config, 2)
    rounded = weight_bytes_per_rank(config, 2, quantization="int8")
    most = rounded + 2 * unrounded / 20 + 32 * _MIB
    assert most < 0.85 * unrounded
    assert _peak_bytes(directory, "int8", _EIGHT_BITS) < most

"""What the figures of a report were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

_VERSIONS = ("torch", "transformers", "grpcio", "protobuf", "numpy", "safetensors")


def describe_machine() -> dict[str, str]:
    """Names and values, in the order in which they are shown."""
    facts: dict[str, str] = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        facts["GPUs"] = str(torch.cuda.device_count())
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts["driver"] = _output(*query).partition("\n")[0]
        facts["CUDA of torch"] = str(torch.version.cuda)
        facts["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    else:
        facts["GPU"] = "none: a rehearsal on the CPU, whose figures say nothing of a GPU"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts["host"] = (
        f"{_processor()}, {os.cpu_count()} processors, {memory:.0f} GiB, Linux {platform.release()}"
    )
    facts["load before"] = f"{os.getloadavg()[0]:.1f}"
    facts["Python"] = platform.python_version()
    facts["packages"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    facts["commit"] = _output("git", "describe", "--always", "--dirty") or "not known: no git checkout"
    return facts


def _output(*command: str) -> str:
    """Empty where the program is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()

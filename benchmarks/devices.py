"""What the benchmarks need to know of the device that they run on."""

from __future__ import annotations

import statistics
import time

import torch


def choose_device(name: str) -> torch.device:
    """ "auto" is the first GPU, if torch can use one, else the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def wait_for(device: torch.device) -> None:
    """Returns when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, *, size_bytes: int | None = None) -> float:
    """Bytes per second of a copy within the device's memory, those read and those written both counted.

    The median of ten copies after two. `size_bytes`: 2 GiB on a GPU, 256 MiB on a CPU, unless given: much more than
    any cache holds.
    """
    size_bytes = size_bytes or (2 << 30 if device.type == "cuda" else 256 << 20)
    source = torch.ones(size_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        wait_for(device)
        started_at = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        times.append(time.perf_counter() - started_at)
    return 2 * size_bytes / statistics.median(times[2:])

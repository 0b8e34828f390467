"""What a device is and how much of its memory is used."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from ryzanstein.v1 import cluster_pb2

from .native.attention import native_attention
from .native.linear import native_linear

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class DeviceError(Exception):
    """The device can't be used; the message says why and what there is instead."""

    exit_code = 2


def describe(device: torch.device, cpu_threads: int) -> cluster_pb2.Device:
    """The device as the coordinator plans with it, computing with so many threads if it is a CPU.

    Raises:
        DeviceError: there is no such device.
    """
    if device.type == "cuda":
        return _describe_cuda(device)
    total = _host_total_bytes()
    return cluster_pb2.Device(
        name="cpu",
        kind="cpu",
        model=_processor_name(),
        total_bytes=total,
        free_bytes=min(total, _meminfo_bytes("MemAvailable")),
        baseline_bytes=used_bytes(device),
        instructions=_instructions(),
        tiles=cpu_threads == 1 and native_linear() is not None,
    )


def _instructions() -> str:
    """What this process computes with: the CPU's, less what Linux refuses to it. The C kernels ask for AMX as oneDNN
    does, and get the same answer. Where they are missing torch's attention takes their place, with other bits.
    """
    attention = native_attention()
    kernels = "torch's attention" if attention is None else f"attention by {attention.isa.name}"
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    highest = attention.highest.name if attention is not None else "AMX" * bool(tiles is not None and tiles())
    return f"{torch.backends.cpu.get_cpu_capability()}{f', {highest}' if highest else ''}, {kernels}"


def used_bytes(device: torch.device) -> int:
    """CPU: resident memory of this process. CUDA: what this process reserved on the device."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(device: torch.device) -> int:
    """The highest that `used_bytes` has been."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return used_bytes(device)


def bound_memory(device: torch.device, limit_bytes: int) -> None:
    """From now on torch fails with OutOfMemoryError rather than hold more of the device than the ledger gives.

    What is not torch's (the context, NCCL's buffers) is not counted. On a CPU, and for a limit of 0, nothing is
    bounded.
    """
    if device.type == "cuda" and limit_bytes:
        _, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(min(limit_bytes / total, 1.0), device)


def host_id() -> str:
    """Equal for processes that can share memory and see each other: the kernel's boot and their namespaces."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespaces = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "net")]
    return "/".join([boot, *namespaces])


def _describe_cuda(device: torch.device) -> cluster_pb2.Device:
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--device {device}: torch {torch.__version__} finds no CUDA here; use --device cpu"
        )
    count = torch.cuda.device_count()
    if device.index is None or device.index >= count:
        raise DeviceError(f"--device {device}: this machine has cuda:0 to cuda:{count - 1}")
    free, total = torch.cuda.mem_get_info(device)
    return cluster_pb2.Device(
        name=str(device),
        kind="cuda",
        model=torch.cuda.get_device_name(device),
        total_bytes=total,
        free_bytes=free,
        baseline_bytes=total - free,
        uuid=str(torch.cuda.get_device_properties(device).uuid),
    )


def _host_total_bytes() -> int:
    """Memory of the host, or of the cgroup if that is less."""
    total = _meminfo_bytes("MemTotal")
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _meminfo_bytes(key: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise DeviceError(f"/proc/meminfo has no {key}")


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()

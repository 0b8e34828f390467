"""What this machine has for the workers that `serve` starts, found without importing torch into the parent."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import structlog

from ryzanstein.processors import Processor, format_processors, share_processors

from .memory_plan import DeviceShare

log = structlog.get_logger(__name__)

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def local_shares(device: str, count: int) -> tuple[DeviceShare, ...]:
    """The devices of `count` workers: a GPU for each, or a part of this host's memory.

    Args:
        device: "auto", "cpu" or "cuda".

    Raises:
        DeviceCountError: there are GPUs, but fewer than workers, or none although they were asked for.
    """
    gpus = [] if device == "cpu" else gpu_memories(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus or device == "cuda":
        if len(gpus) < count:
            raise DeviceCountError(
                f"{count} workers need a GPU each and this machine has {len(gpus)}: lower --tensor-parallel-size "
                "or --spares, or use --device cpu"
            )
        return tuple(_share("cuda", total, 1) for total in gpus[:count])
    return (_share("cpu", host_memory(), count),) * count


def pinned_processors(
    processors: Sequence[Processor], count: int, threads: int, pinning: str
) -> tuple[str, ...]:
    """Those of each of `count` workers on this host, as a worker's `--cpu-pinning` takes them; empty: any.

    Args:
        processors: of this host, that may be used.
        pinning: "none"; "cores": own ones if there are enough; "auto": that, on hosts with several NUMA nodes. On one
            node nothing was won by it where it was measured, and what else runs can't be avoided any more.
    """
    if pinning == "none":
        return ()
    if pinning == "auto" and (count < 2 or len({processor.node for processor in processors}) < 2):
        return ()
    blocks = share_processors(processors, count, threads)
    if not blocks:
        log.warning(
            "no_room_to_pin",
            reason=f"no NUMA nodes hold {count} blocks of {threads} processors: lower --cpu-threads",
        )
    return tuple(format_processors(block) for block in blocks)


class DeviceCountError(ValueError):
    """Not enough devices; the message says how many there are."""

    exit_code = 2


def gpu_memories(visible: str | None) -> list[int]:
    """Bytes of each NVIDIA GPU that the workers will see, in their order; empty without a driver.

    Args:
        visible: CUDA_VISIBLE_DEVICES, which the workers inherit: they count from 0 what it names.
    """
    query = ["nvidia-smi", "--query-gpu=uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        rows = [line.split(",") for line in listing.splitlines() if line.strip()]
        return visible_memories([(uuid.strip(), int(mebibytes) * 2**20) for uuid, mebibytes in rows], visible)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def visible_memories(gpus: Sequence[tuple[str, int]], visible: str | None) -> list[int]:
    """What CUDA makes of `visible`: indices, or the beginnings of ids, up to the first that names no GPU.

    Args:
        gpus: (id, bytes) of all of this machine.
    """
    if visible is None:
        return [total for _, total in gpus]
    chosen = []
    for name in (part.strip() for part in visible.split(",")):
        if name.isascii() and name.isdigit():
            named = gpus[int(name) : int(name) + 1]
        else:
            named = [gpu for gpu in gpus if name and gpu[0].startswith(name)]
        if len(named) != 1:
            break
        chosen.append(named[0][1])
    return chosen


def host_memory() -> int:
    """Bytes of this host, or of the cgroup if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _share(kind: str, total_bytes: int, sharing: int) -> DeviceShare:
    """What is free and what a worker's process needs is not known before it runs."""
    return DeviceShare(
        kind=kind, total_bytes=total_bytes, free_bytes=total_bytes, baseline_bytes=0, sharing=sharing
    )

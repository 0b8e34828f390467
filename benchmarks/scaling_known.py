"""Shapes, devices and links for the model of a step, and its constants as they follow from measurements.

What is a data sheet's number, what is somebody else's measurement and what is ours, stands at each. No GPU was measured
by us.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from .scaling_fit import Fit, fit
from .scaling_model import Cluster, Device, Link, Load, Shape, attention_work, matrix_work
from .shapes import SHAPES

_MEASURED = Path(__file__).with_name("scaling_measured.json")

MEDIUM = Shape.of("medium", SHAPES["medium"])
SHAPE_8B = Shape.of("8B", SHAPES["8b"])
#: As Llama 3.1 70B.
SHAPE_70B = Shape("70B", 128256, 8192, 28672, 80, 64, 8, 128)
PUBLISHED = {
    "llama-2-7b": Shape("Llama 2 7B", 32000, 4096, 11008, 32, 32, 32, 128),
    "llama-2-70b": Shape("Llama 2 70B", 32000, 8192, 28672, 80, 64, 8, 128),
}

#: Host's share of a step of 16 streams (docs/benchmarks.md, The scheduler): ours, on a CPU; nothing hides it yet.
HOST_STEP_S = 0.3e-3
#: Of the data sheet's bandwidth: what gpt-fast's curve implies of an A100 (1,629 of 2,039 GB/s) is 0.80.
READS = 0.80
#: Of the data sheet's dense bfloat16 rate in large products. An assumption.
MULTIPLIES = 0.65
#: Of a link's data sheet, one direction. NCCL issue 1264 reports 380 of 450 GB/s between two H100.
SENDS = 0.84


def gpu(bytes_per_s: float, operations_per_s: float, memory_bytes: float) -> Device:
    """From a data sheet. What a layer takes however it is split is taken from gpt-fast's curve, on an A100."""
    layer_s = published_fit().coefficients[1]
    return Device(bytes_per_s * READS, operations_per_s * MULTIPLIES, memory_bytes, layer_s, HOST_STEP_S)


@cache
def devices() -> dict[str, Device]:
    """Data sheets: memory bandwidth, dense bfloat16, capacity."""
    return {
        "H100 SXM": gpu(3.35e12, 989e12, 80e9),
        "H200 SXM": gpu(4.8e12, 989e12, 141e9),
        "H100 PCIe": gpu(2.0e12, 756e12, 80e9),
    }


#: One direction, from data sheets (900 GB/s and 128 GB/s count both), hops from NCCL's tuning table.
NVLINK = Link(450e9 * SENDS, 0.47e-6, 3.4e-6)
PCIE = Link(64e9 * SENDS, 1.0e-6, 5.7e-6)
#: One 400 Gbit/s card per GPU; hops from NCCL's table for networks. RoCE: the same table, a switch hop more (assumed).
INFINIBAND = Link(50e9 * 0.9, 2.7e-6, 9.6e-6)
ROCE = Link(50e9 * 0.9, 4.0e-6, 12e-6)
#: One 100 Gbit/s card for the whole host, over TCP: 30 us to the other side and back into memory (assumed).
ETHERNET = Link(12.5e9 * 0.7 / 8, 30e-6, 40e-6)


def one_host(device: str, gpus: int) -> Cluster:
    return Cluster(devices()[device], PCIE if "PCIe" in device else NVLINK, gpus)


def several_hosts(device: str, hosts: int, between: Link) -> Cluster:
    """Of eight GPUs each."""
    return replace(one_host(device, 8), hosts=hosts, between=between)


@dataclass(frozen=True)
class Observation:
    """One measured step."""

    name: str
    ranks: int
    measured_s: float


@cache
def measured() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(_MEASURED.read_text())
    return loaded


@cache
def published() -> list[Observation]:
    """gpt-fast's steps."""
    return [
        Observation(run["shape"], int(ranks), 1 / rate)
        for run in measured()["gpt_fast"]["runs"]
        for ranks, rate in run["ranks"].items()
    ]


@cache
def published_fit() -> Fit:
    """Seconds per byte, per layer, per sum: three constants for seven points."""
    rows = []
    for one in published():
        shape = PUBLISHED[one.name]
        sums = (2 * shape.layers + 1) * (one.ranks > 1)
        rows.append([shape.matrix_values * shape.bytes_per_value / one.ranks, shape.layers, sums])
    return fit(rows, [one.measured_s for one in published()])


@cache
def shared_memory_fits() -> dict[int, Fit]:
    """Of an all-reduce by ranks: seconds, and seconds per byte."""
    found = {}
    for run in measured()["collectives"]["runs"]:
        rows = [[1.0, float(size)] for size in run["seconds"]]
        found[int(run["ranks"])] = fit(rows, list(run["seconds"].values()))
    return found


@cache
def ours() -> list[tuple[Observation, Load]]:
    """`medium` through the whole cluster: a prompt's first token, and a step with so many streams."""
    cluster = measured()["cluster"]
    found = []
    for run in cluster["runs"]:
        ranks, prompt = run["ranks"], cluster["first_token_prompt"]
        found.append((Observation(f"prefill {prompt}", ranks, run["first_token_s"]), Load(1, prompt)))
        for streams, rate in run["decode"].items():
            load = Load(int(streams), 1, cluster["context"])
            found.append((Observation(f"b{streams}", ranks, int(streams) / rate), load))
    return found


@cache
def ours_fit() -> Fit:
    """Seconds per byte read, per operation, per step. Communication is known: the benchmark of collectives."""
    return fit([_work(one, load) for one, load in ours()], [one.measured_s for one, _ in ours()], _sums())


def _work(one: Observation, load: Load) -> list[float]:
    read, operations = matrix_work(MEDIUM, load, one.ranks)
    cached, attended = attention_work(MEDIUM, load, one.ranks)
    return [read + cached, operations + attended, 1.0]


def _sums() -> list[float]:
    """Seconds of all sums of each observation, by the collectives' fit."""
    found = []
    for one, load in ours():
        if one.ranks == 1:
            found.append(0.0)
            continue
        base, per_byte = shared_memory_fits()[one.ranks].coefficients
        size = load.rows * MEDIUM.hidden_size * MEDIUM.bytes_per_value
        found.append((2 * MEDIUM.layers + 1) * (base + per_byte * size))
    return found


def communication_share(one: Observation) -> float:
    """Of a measured step of ours."""
    index = next(i for i, (other, _) in enumerate(ours()) if other == one)
    return _sums()[index] / one.measured_s

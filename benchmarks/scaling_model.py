"""How long a step takes on N ranks: bytes, operations, messages and what does not shrink. Pure functions of numbers.

A rank reads its share of the weights once and its share of every stream's keys and values; it multiplies its share of
every matrix with every row; the ranks meet in two sums per layer, one for the embedding and one gather of the logits
(docs/DISTRIBUTED_ARCHITECTURE.md). What does not shrink with N: the small kernels of a layer, and the host's work for a
step. docs/scaling.md holds what follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Of a Llama-like model. `bytes_per_value`: of weights, activations, keys and values alike."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    bytes_per_value: int = 2

    @classmethod
    def of(cls, name: str, config: dict[str, Any]) -> Shape:
        """From the values of a config.json (`benchmarks.shapes.SHAPES`)."""
        return cls(
            name,
            config["vocab_size"],
            config["hidden_size"],
            config["intermediate_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
        )

    @property
    def matrix_values(self) -> int:
        """All matrices that a step multiplies with: every layer's and the head's, not the embedding table."""
        attention = self.hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size) + (
            self.vocab_size * self.hidden_size
        )

    @property
    def stored_bytes(self) -> int:
        """With the embedding table; norms are too small to count."""
        return (self.matrix_values + self.vocab_size * self.hidden_size) * self.bytes_per_value

    def kv_bytes_per_token(self, ranks: int) -> float:
        """Of one rank: neighbours hold the same head where there are more ranks than key-value heads."""
        held = max(self.kv_heads / ranks, 1.0)
        return 2 * self.layers * held * self.head_dim * self.bytes_per_value


@dataclass(frozen=True)
class Load:
    """One step: so many streams, each with so many new tokens behind `context` tokens in the cache."""

    streams: int
    new_tokens: int = 1
    context: int = 0

    @property
    def rows(self) -> int:
        return self.streams * self.new_tokens


@dataclass(frozen=True)
class Device:
    """One rank's. What it reaches, not what its data sheet says."""

    bytes_per_s: float
    operations_per_s: float
    memory_bytes: float
    #: What each layer takes however it is split: norms, rotations, gates, the beginnings and ends of kernels.
    layer_s: float
    #: What each step takes on the host while the device waits: schedule, plan, sampling, message.
    step_s: float
    #: Memory is read while others multiply (GPUs); else one after the other (what was found on CPUs).
    overlaps: bool = True


@dataclass(frozen=True)
class Link:
    """Between ranks. An all-reduce of n bytes over k ranks takes the best of three ways, as NCCL chooses:

    ring, low latency: base + 2(k-1) hops, at a quarter of the bandwidth
    tree, low latency: tree_base + 2(k-1) hops within a host + 2 log2(hosts) between, at a quarter of it, times 0.9
    ring, simple: simple_base + 2(k-1) simple hops, at all of it

    Source: NCCL's own estimates, src/graph/tuning.cc (ncclTopoTuneModel): its constants are those below. A ring moves
    2(k-1)/k of the bytes through every link.
    """

    bytes_per_s: float
    hop_s: float
    simple_hop_s: float
    base_s: float = 3.6e-6
    tree_base_s: float = 4.4e-6
    simple_base_s: float = 8.4e-6


@dataclass(frozen=True)
class Cluster:
    """`hosts` equal hosts with `per_host` ranks each. `between`: by each rank's own network card; None for one host."""

    device: Device
    within: Link
    per_host: int
    hosts: int = 1
    between: Link | None = None

    @property
    def ranks(self) -> int:
        return self.hosts * self.per_host


@dataclass(frozen=True)
class Step:
    """Seconds of one step, by what they go to."""

    matrices_s: float
    attention_s: float
    fixed_s: float
    communication_s: float

    @property
    def total_s(self) -> float:
        return self.matrices_s + self.attention_s + self.fixed_s + self.communication_s


def step(shape: Shape, load: Load, cluster: Cluster) -> Step:
    """All of it, on the ranks of `cluster`."""
    device, ranks = cluster.device, cluster.ranks
    read, multiplied = matrix_work(shape, load, ranks)
    cached, attended = attention_work(shape, load, ranks)
    return Step(
        matrices_s=_time(device, read, multiplied),
        attention_s=_time(device, cached, attended),
        fixed_s=shape.layers * device.layer_s + device.step_s,
        communication_s=sum(
            count * all_reduce_s(size, cluster) if kind == "sum" else count * gather_s(size, cluster)
            for kind, count, size in messages(shape, load)
        ),
    )


def fits(shape: Shape, load: Load, cluster: Cluster) -> bool:
    """Weights, keys and values in nine tenths of a device's memory."""
    cached = load.streams * (load.context + load.new_tokens) * shape.kv_bytes_per_token(cluster.ranks)
    return shape.stored_bytes / cluster.ranks + cached <= 0.9 * cluster.device.memory_bytes


def matrix_work(shape: Shape, load: Load, ranks: int) -> tuple[float, float]:
    """Bytes and operations of one rank's matrices. Only a prompt's last row reaches the head."""
    head = shape.vocab_size * shape.hidden_size
    layers = shape.matrix_values - head
    operations = 2.0 * (layers * load.rows + head * load.streams)
    return shape.matrix_values * shape.bytes_per_value / ranks, operations / ranks


def attention_work(shape: Shape, load: Load, ranks: int) -> tuple[float, float]:
    """Bytes and operations of one rank's attention; a row sees what is before it."""
    cached = load.streams * (load.context + load.new_tokens) * shape.kv_bytes_per_token(ranks)
    seen = load.streams * load.new_tokens * (load.context + (load.new_tokens + 1) / 2)
    return cached, 4.0 * shape.layers * shape.heads * shape.head_dim * seen / ranks


def messages(shape: Shape, load: Load) -> list[tuple[str, int, float]]:
    """(kind, how often, bytes of the whole tensor) of one step."""
    width = shape.bytes_per_value
    return [
        ("sum", 2 * shape.layers + 1, load.rows * shape.hidden_size * width),
        ("gather", 1, load.streams * shape.vocab_size * width),
    ]


def all_reduce_s(size_bytes: float, cluster: Cluster) -> float:
    """The best way over all ranks. Between hosts every rank's card carries its share of the ring or tree."""
    ranks, within, between = cluster.ranks, cluster.within, cluster.between
    if ranks == 1:
        return 0.0
    far_hops = 2 * (cluster.hosts - 1)
    near_hops = 2 * (ranks - 1) - far_hops
    levels = (cluster.hosts - 1).bit_length()
    # Rings run through every card at once, so the cards together are what the links of a host are.
    bandwidth = within.bytes_per_s
    if between is not None:
        bandwidth = min(bandwidth, between.bytes_per_s * cluster.per_host)
    far, far_simple = (between.hop_s, between.simple_hop_s) if between is not None else (0.0, 0.0)
    moved = 2 * (ranks - 1) / ranks * size_bytes
    return min(
        within.base_s + near_hops * within.hop_s + far_hops * far + 4 * moved / bandwidth,
        within.tree_base_s
        + 2 * (cluster.per_host - 1) * within.hop_s
        + 2 * levels * far
        + 4 * 2 * size_bytes / (0.9 * bandwidth),
        within.simple_base_s + near_hops * within.simple_hop_s + far_hops * far_simple + moved / bandwidth,
    )


def gather_s(size_bytes: float, cluster: Cluster) -> float:
    """Every rank receives the others' parts of a tensor of `size_bytes`: half the hops and bytes of a sum, one base."""
    if cluster.ranks == 1:
        return 0.0
    return (all_reduce_s(size_bytes, cluster) + cluster.within.base_s) / 2


def ordered_sum_s(size_bytes: float, cluster: Cluster) -> float:
    """A sum in the order of the ranks (`--reproducible` over NCCL): every rank receives all others' whole tensors."""
    return gather_s(size_bytes * cluster.ranks, cluster)


def _time(device: Device, read_bytes: float, operations: float) -> float:
    read_s, compute_s = read_bytes / device.bytes_per_s, operations / device.operations_per_s
    return max(read_s, compute_s) if device.overlaps else read_s + compute_s

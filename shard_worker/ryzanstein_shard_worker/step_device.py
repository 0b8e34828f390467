"""How the steps of a GPU are launched: with which attention, through which buffers, from which graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .models import Decoder
from .paged_attention import KVPool

if TYPE_CHECKING:  # imported where a GPU is
    from .gpu.attention import DeviceAttention
    from .gpu.decode_graphs import DecodeGraphs
    from .gpu.staging import Staging


@dataclass(frozen=True, slots=True)
class StepDevice:
    """Of one shard and its pages; outlives epochs."""

    attention: DeviceAttention
    staging: Staging
    #: None: none were asked for.
    graphs: DecodeGraphs | None
    #: As they were asked for.
    graph_sizes: tuple[int, ...]
    gpu_attention: str = ""


def step_device(
    model: Decoder,
    pool: KVPool,
    graph_sizes: tuple[int, ...],
    *,
    max_model_len: int,
    reproducible: bool,
    gpu_attention: str = "",
    rehearse: bool = False,
) -> StepDevice | None:
    """For a GPU's pages; None on a CPU, whose kernels take a step as it is.

    Args:
        graph_sizes: rows of the steps that only decode which are to be captured; none: no graphs.
        max_model_len: the most tokens of a sequence.
        reproducible: a row's attention must not depend on what else is in the step.
        gpu_attention: the kind of attention; empty or "auto": the first that fits.
        rehearse: also on a CPU, over pages without a native kernel: the same steps, with replays that compute again.
    """
    if pool.device.type != "cuda" and not rehearse:
        return None
    from .gpu.attention import ModelAttention
    from .gpu.choice import choose_attention
    from .gpu.decode_graphs import DecodeGraphs
    from .gpu.graph_driver import make_driver
    from .gpu.staging import Staging

    attention = choose_attention(
        pool,
        ModelAttention(model.query_heads, model.sliding_windows, model.attention_scale, reproducible),
        kind=gpu_attention,
    )
    graphs = None
    if graph_sizes:
        graphs = DecodeGraphs(
            model,
            pool,
            attention,
            make_driver(pool.device),
            sizes=graph_sizes,
            max_model_len=max_model_len,
        )
    return StepDevice(attention, Staging(pool.device), graphs, graph_sizes, gpu_attention)

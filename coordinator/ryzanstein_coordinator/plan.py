"""The memory ledger as people and programs read it: `ryzanstein plan`, and `PlanMemory` for a cluster that
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import grpc

from ryzanstein.model_plan import ModelConfig, ModelError, check_tensor_parallel_size, read_model_config
from ryzanstein.v1 import operations_pb2
from ryzanstein.wire import StatusError, invalid_argument, to_plain

from .config import ConfigError, OrchestratorConfig
from .memory_ledger import format_bytes
from .memory_plan import DeviceShare, MemoryPlan
from .resource_allocator import ResourceAllocator
from .state import ClusterState


def plan_for_devices(
    config: OrchestratorConfig, *, device_bytes: int, kind: str = "cuda", model: ModelConfig | None = None
) -> MemoryPlan:
    """The ledger for `config.tensor_parallel_size` equal devices that nobody has to have.

    Args:
        config: model directory, sizes, dtype and utilization.
        device_bytes: memory of each device.
        kind: "cuda" or "cpu".
        model: None reads it from the model directory.

    Raises:
        ModelError: the directory holds no model that can be served, or it can't be split so.
    """
    model = model or read_model_config(config.model_dir)
    check_tensor_parallel_size(model, config.tensor_parallel_size)
    share = DeviceShare(kind=kind, total_bytes=device_bytes, free_bytes=device_bytes, baseline_bytes=0)
    size = config.tensor_parallel_size
    return ResourceAllocator(config, model).plan(size, (share,) * size)


def plan_for_cluster(
    config: OrchestratorConfig,
    model: ModelConfig,
    state: ClusterState,
    request: operations_pb2.PlanMemoryRequest,
) -> operations_pb2.PlanMemoryResponse:
    """The ledger that the request asks for, with the coordinator's own settings where it says nothing.

    Raises:
        StatusError: INVALID_ARGUMENT for sizes that make no sense; FAILED_PRECONDITION if no device is named
            and no worker has registered one.
    """
    size = request.tensor_parallel_size or config.tensor_parallel_size
    try:
        check_tensor_parallel_size(model, size)  # before anything is made that has so many parts
        changed = replace(
            config,
            tensor_parallel_size=size,
            memory_utilization=request.memory_utilization or config.memory_utilization,
        )
    except (ConfigError, ModelError) as error:
        raise invalid_argument(str(error)) from error
    allocator = ResourceAllocator(changed, model)
    shares = _shares(changed, allocator, state, request.device_bytes)
    plan = allocator.plan(size, tuple((shares * size)[:size]) if len(shares) < size else tuple(shares[:size]))
    return plan_message(plan)


def _shares(
    config: OrchestratorConfig, allocator: ResourceAllocator, state: ClusterState, device_bytes: int
) -> list[DeviceShare]:
    workers = [worker for worker in state.workers.values() if worker.alive]
    if device_bytes:
        kinds = {worker.device.kind for worker in workers}
        kind = "cpu" if kinds == {"cpu"} or (not kinds and config.device == "cpu") else "cuda"
        return [DeviceShare(kind=kind, total_bytes=device_bytes, free_bytes=device_bytes, baseline_bytes=0)]
    if not workers:
        raise StatusError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "no worker has registered, so no device is known; give device_bytes",
        )
    return [allocator.share(worker, workers) for worker in workers]


def plan_message(plan: MemoryPlan) -> operations_pb2.PlanMemoryResponse:
    """The plan on the wire; what was decided or refused comes first in `advice`."""
    bounds = plan.bounds
    return operations_pb2.PlanMemoryResponse(
        fits=plan.fits,
        ranks=[
            operations_pb2.RankLedger(
                rank=ledger.rank,
                budget_bytes=ledger.budget,
                components=[
                    operations_pb2.MemoryComponent(name=name, bytes=count)
                    for name, count in ledger.components
                ],
                free_bytes=max(0, ledger.free),
            )
            for ledger in plan.ledgers
        ],
        kv_tokens=0 if bounds is None else bounds.kv_tokens,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        advice=plan.notes if plan.fits else plan.advice,
    )


def plan_json(plan: MemoryPlan) -> dict[str, Any]:
    """The plan for `ryzanstein plan --json`: the message's fields, the refusal and the longest sequence."""
    fields = to_plain(plan_message(plan))
    del fields["epoch"]
    fields["refusal"] = plan.refusal
    fields["max_model_len"] = 0 if plan.bounds is None else plan.bounds.max_model_len
    return fields


def render_plan(plan: MemoryPlan) -> str:
    """The plan as a table, and what follows from it. Raises ModelError if there is nothing to show."""
    if not plan.ledgers:
        raise ModelError(plan.refusal)
    names = [name for name, _ in plan.ledgers[0].components]
    header = ["rank", *names, "sum", "budget", "free"]
    rows = [header]
    for ledger in plan.ledgers:
        counts = [count for _, count in ledger.components]
        cells = [format_bytes(count) for count in counts]
        free = format_bytes(ledger.free) if ledger.free >= 0 else f"-{format_bytes(-ledger.free)}"
        rows.append([str(ledger.rank), *cells, format_bytes(sum(counts)), format_bytes(ledger.budget), free])
    return "\n".join([*_aligned(rows), "", *_conclusion(plan)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _conclusion(plan: MemoryPlan) -> list[str]:
    if plan.bounds is None:
        return [f"does not fit: {plan.refusal}", *(f"  {sentence}" for sentence in plan.advice)]
    bounds = plan.bounds
    return [
        f"fits: {bounds.kv_tokens} tokens of KV cache ({format_bytes(plan.kv_bytes_per_token)} per token and "
        f"rank), sequences of up to {bounds.max_model_len} tokens, {bounds.max_num_seqs} at once",
        *plan.notes,
    ]

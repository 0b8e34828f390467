"""One rank's time in the group of one epoch: who gives weights to whom, the steps, and what is told when it breaks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
import torch

from ryzanstein.v1 import cluster_pb2, shard_worker_pb2

from .communication import CommunicationError, CommunicationProfiler
from .inbox import Inbox
from .kv_cache import BlockAllocator
from .memory_errors import is_out_of_memory
from .prefill_pace import PrefillPace
from .process_groups import Group
from .scheduler import Limits, Scheduler
from .step_loop import Progress, Publish, RunsBatches, StepLoop, follow, lead

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class EpochMembership:
    """The group that the engine is in, and how far it is there."""

    group: Group
    inbox: Inbox
    profiler: CommunicationProfiler
    progress: Progress = field(default_factory=Progress)


def run_steps(
    request: shard_worker_pb2.JoinGroupRequest,
    membership: EpochMembership,
    runner: RunsBatches,
    publish: Publish,
    *,
    keep_alive_s: float,
) -> cluster_pb2.Fault | None:
    """Steps, as the leader or as a follower, with a scheduler of its own.

    Returns:
        What ended it; None: the leader said stop.
    """
    limits, group = request.limits, membership.group
    membership.progress.last_step_at = time.monotonic()
    membership.progress.patience_s = request.collective_timeout_s
    scheduler = Scheduler(
        Limits(limits.max_num_seqs, limits.max_batched_tokens, request.model.max_model_len),
        # Pages of an earlier epoch are never found: a rank that was replaced doesn't have them.
        BlockAllocator(limits.num_blocks, limits.block_size, prefix_caching=limits.prefix_caching),
    )
    pace = None
    if limits.max_decode_slowdown > 1.0:
        pace = PrefillPace(limits.max_decode_slowdown, limits.max_batched_tokens)
    loop = StepLoop(
        request.epoch, membership.profiler, group.step_channel, scheduler, runner, membership.progress, pace
    )
    try:
        if group.rank == 0:
            lead(loop, membership.inbox, publish, keep_alive_s=keep_alive_s)
        else:
            follow(loop, timeout_s=request.collective_timeout_s)
    except Exception as error:  # noqa: BLE001 - whatever it is, this rank leaves the group and says why
        fault = _describe(error, request.epoch, membership.profiler)
        log.warning("step_failed", kind=fault.kind, error=fault.message, rank=group.rank, epoch=request.epoch)
        return fault
    return None


def parameter_sources(members: Sequence[shard_worker_pb2.GroupMember]) -> dict[int, int]:
    """Which rank gives its weights to which: those with files share the work of those without."""
    sources = [member.rank for member in members if member.has_files]
    needy = [member.rank for member in members if not member.loaded]
    if needy and not sources:
        raise RuntimeError("no rank has the checkpoint; put it on one host of the group at least")
    return {rank: sources[i % len(sources)] for i, rank in enumerate(needy)}


def _describe(error: Exception, epoch: int, handler: CommunicationProfiler) -> cluster_pb2.Fault:
    """What the coordinator needs to name the culprit."""
    fault = cluster_pb2.Fault(kind="engine", message=f"{type(error).__name__}: {error}", epoch=epoch)
    last = handler.last
    fault.collective.CopyFrom(cluster_pb2.LastCollective(name=last.operation, sequence=last.sequence))
    if isinstance(error, CommunicationError):
        fault.kind = "collective"
        if error.peer is not None:
            fault.peer_rank = error.peer
    elif is_out_of_memory(error):
        fault.kind = "memory"
    elif isinstance(error, torch.AcceleratorError):  # the device's context is lost with it
        fault.kind = "device"
    return fault

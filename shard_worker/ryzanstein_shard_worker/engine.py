"""The engine thread: loads a shard, joins groups, steps until it is told to stop or something fails.

The control thread (asyncio) talks to it by commands that return futures, by `abort`, which also frees it from a
blocked collective, and reads its `status` for the heartbeats.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog
import torch

from ryzanstein.v1 import cluster_pb2, shard_worker_pb2

from .communication import CommunicationError, CommunicationProfiler
from .config import DistributedConfig
from .inbox import Inbox
from .kv_cache import BlockAllocator
from .paged_attention import KVPool
from .process_groups import Group, ProcessGroupManager
from .runner import Runner
from .scheduler import Limits, Scheduler
from .shard import Shard, ShardKey, build_shard
from .step_loop import Progress, Publish, StepLoop, follow, lead

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What a heartbeat tells. Replaced as a whole, so that a reader never sees half a change."""

    state: cluster_pb2.WorkerState.ValueType = cluster_pb2.WORKER_STATE_STANDBY
    phase: str = "waiting"
    epoch: int = 0
    load_progress: float = 0.0
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    fault: cluster_pb2.Fault | None = None


@dataclass(slots=True)
class _Membership:
    """The group that the engine is in."""

    group: Group
    inbox: Inbox
    profiler: CommunicationProfiler
    progress: Progress = field(default_factory=Progress)


class Engine:
    """Owns the device. Construct, `start()`, then send commands; one command runs at a time, in order."""

    def __init__(
        self,
        config: DistributedConfig,
        groups: ProcessGroupManager,
        *,
        publish: Publish,
        on_change: Callable[[], None],
    ) -> None:
        """
        Args:
            groups: joins and aborts process groups.
            publish: takes what each step brought, on the leader; called on the engine thread.
            on_change: called on the engine thread after `status` changed in a way that should be told at once.
        """
        self._config = config
        self._groups = groups
        self._publish = publish
        self._on_change = on_change
        self._device = torch.device(config.device)
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._shard: Shard | None = None
        self._pool: KVPool | None = None
        self._membership: _Membership | None = None
        self._idle = threading.Event()
        self._idle.set()
        self.status = EngineStatus()

    def start(self) -> None:
        self._thread.start()

    def load(self, request: shard_worker_pb2.LoadShardRequest) -> Future[Shard]:
        """Loads a rank's shard; the same shard again costs nothing. Raises (in the future) ModelError."""
        return self._command(lambda: self._load(request))

    def join(self, request: shard_worker_pb2.JoinGroupRequest) -> Future[Group]:
        """Joins the epoch's group; the future is done when it stands, and the engine goes on stepping."""
        joined: Future[Group] = Future()
        self._idle.clear()
        self._commands.put(lambda: self._serve(request, joined))
        return joined

    def release(self) -> Future[None]:
        """Gives back weights and cache."""
        return self._command(self._release)

    def abort(self, reason: str, timeout_s: float = 5.0) -> int:
        """Leaves the group at once, also out of a blocked collective; the weights stay. Blocks until it is out.

        Returns:
            The last step that was finished; 0 outside a group.
        """
        membership = self._membership
        self._groups.abort(reason)
        if membership is not None:
            membership.inbox.stop()
        if not self._idle.wait(timeout_s):
            raise TimeoutError(f"the engine did not leave its group within {timeout_s:.1f} s")
        return 0 if membership is None else membership.progress.step

    def close(self, leave_s: float = 1.0) -> None:
        """Ends the thread. A group that stands is left in order, if all of it ends within `leave_s`; else aborted."""
        if self.inbox is not None:
            self.inbox.stop()  # the leader's last plan ends the loop of every rank
        if not self._idle.wait(leave_s):
            self.abort("the worker stops")
        self._commands.put(None)
        self._thread.join(timeout=5.0)

    @property
    def inbox(self) -> Inbox | None:
        """The leader's mailbox; None on other ranks and outside a group."""
        membership = self._membership
        return membership.inbox if membership is not None and membership.group.rank == 0 else None

    @property
    def membership(self) -> _Membership | None:
        return self._membership

    def progress_age_s(self) -> float:
        """Seconds since the last finished step or keep-alive; 0 outside a group."""
        membership = self._membership
        return 0.0 if membership is None else time.monotonic() - membership.progress.last_step_at

    def _command(self, run: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def execute() -> None:
            # From here on the caller's going away (its RPC was cancelled) can't cancel the future under our hands.
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(run())
            except Exception as error:  # noqa: BLE001 - handed to whoever asked
                future.set_exception(error)

        self._commands.put(execute)
        return future

    def _main(self) -> None:
        torch.set_num_threads(self._config.cpu_threads)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while (command := self._commands.get()) is not None:
            command()

    def _set(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]
        self._on_change()

    def _load(self, request: shard_worker_pb2.LoadShardRequest) -> Shard:
        key = ShardKey.of(request)
        if self._shard is not None and self._shard.key == key:
            return self._shard
        self._release()  # before the new weights, not beside them
        self._set(state=cluster_pb2.WORKER_STATE_LOADING, phase="loading", load_progress=0.0, fault=None)

        try:
            shard = build_shard(request, model_dir=self._config.model_dir, device=self._device)
            if shard.index is not None:
                shard.read(self._device, self._progressed)
        except BaseException:
            self._set(state=cluster_pb2.WORKER_STATE_STANDBY, phase="waiting", load_progress=0.0)
            raise
        self._shard = shard
        self._set(
            state=cluster_pb2.WORKER_STATE_STANDBY,
            phase="loaded" if shard.loaded else "waiting for a peer's weights",
            load_progress=float(shard.loaded),
            weights_bytes=shard.weights_bytes,
        )
        return shard

    def _progressed(self, fraction: float) -> None:
        self.status = replace(self.status, load_progress=fraction)

    def _release(self) -> None:
        self._shard = self._pool = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._set(
            state=cluster_pb2.WORKER_STATE_STANDBY,
            phase="waiting",
            load_progress=0.0,
            weights_bytes=0,
            kv_cache_bytes=0,
        )

    def _serve(self, request: shard_worker_pb2.JoinGroupRequest, joined: Future[Group]) -> None:
        """The life of this rank in one epoch."""
        try:
            if not joined.set_running_or_notify_cancel():
                return
            try:
                self._enter(request)
            except Exception as error:  # noqa: BLE001 - handed to whoever asked
                self._leave(request.epoch, None)
                joined.set_exception(error)
                return
            membership = self._membership
            assert membership is not None
            joined.set_result(membership.group)
            self._step(request, membership)
        finally:
            self._membership = None
            self._idle.set()

    def _enter(self, request: shard_worker_pb2.JoinGroupRequest) -> None:
        shard = self._shard
        if (
            shard is None
            or shard.key.rank != request.rank
            or shard.key.tensor_parallel_size != len(request.members)
        ):
            raise RuntimeError(f"rank {request.rank} of {len(request.members)} has no shard loaded here")
        self._set(state=cluster_pb2.WORKER_STATE_LOADING, phase="forming", epoch=request.epoch, fault=None)
        group = self._groups.join(request, self._device)
        profiler = CommunicationProfiler(group.handler)
        shard.handler.bind(profiler)
        self._membership = _Membership(group, Inbox(), profiler)
        sources = parameter_sources(request.members)
        if sources:
            self._set(phase="handing over weights")
            shard.exchange(group.handler, sources, self._device, self._progressed)
        limits = request.limits
        if self._pool is None or self._pool.num_blocks != limits.num_blocks:
            self._pool = None  # before the new one, not beside it
            self._pool = shard.allocate_pool(limits, self._device)
        self._set(phase="warming up", weights_bytes=shard.weights_bytes, kv_cache_bytes=self._pool.bytes)
        self._runner = Runner(shard.model, self._pool, cpu_threads=self._config.cpu_threads)
        self._runner.warm_up(limits.max_batched_tokens)
        group.handler.barrier()  # no rank serves before all are warm
        self._set(state=cluster_pb2.WORKER_STATE_ACTIVE, phase="serving")

    def _step(self, request: shard_worker_pb2.JoinGroupRequest, membership: _Membership) -> None:
        limits = request.limits
        membership.progress.last_step_at = time.monotonic()
        scheduler = Scheduler(
            Limits(limits.max_num_seqs, limits.max_batched_tokens, request.model.max_model_len),
            BlockAllocator(limits.num_blocks, limits.block_size),
        )
        group = membership.group
        loop = StepLoop(
            request.epoch,
            membership.profiler,
            group.step_channel,
            scheduler,
            self._runner,
            membership.progress,
        )
        try:
            if group.rank == 0:
                lead(loop, membership.inbox, self._publish, keep_alive_s=self._config.keep_alive_s)
            else:
                follow(loop, timeout_s=request.collective_timeout_s)
        except Exception as error:  # noqa: BLE001 - whatever it is, this rank has left the group and says why
            fault = describe_fault(error, request.epoch, membership.profiler)
            log.warning(
                "step_failed", kind=fault.kind, error=fault.message, rank=group.rank, epoch=request.epoch
            )
            self._leave(request.epoch, fault)
        else:
            self._leave(request.epoch, None)

    def _leave(self, epoch: int, fault: cluster_pb2.Fault | None) -> None:
        if self._shard is not None:
            self._shard.handler.unbind()
        self._groups.leave(epoch)
        self._set(state=cluster_pb2.WORKER_STATE_STANDBY, phase="loaded", epoch=0, fault=fault)


def parameter_sources(members: Sequence[shard_worker_pb2.GroupMember]) -> dict[int, int]:
    """Which rank gives its weights to which: those with files share the work of those without."""
    sources = [member.rank for member in members if member.has_files]
    needy = [member.rank for member in members if not member.loaded]
    if needy and not sources:
        raise RuntimeError("no rank has the checkpoint; put it on one host of the group at least")
    return {rank: sources[i % len(sources)] for i, rank in enumerate(needy)}


def describe_fault(error: Exception, epoch: int, handler: CommunicationProfiler) -> cluster_pb2.Fault:
    """What the coordinator needs to name the culprit."""
    fault = cluster_pb2.Fault(kind="engine", message=f"{type(error).__name__}: {error}", epoch=epoch)
    last = handler.last
    fault.collective.CopyFrom(cluster_pb2.LastCollective(name=last.operation, sequence=last.sequence))
    if isinstance(error, CommunicationError):
        fault.kind = "collective"
        if error.peer is not None:
            fault.peer_rank = error.peer
    elif isinstance(error, torch.OutOfMemoryError | MemoryError):
        fault.kind = "memory"
    return fault

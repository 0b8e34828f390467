"""The engine thread: loads a shard, joins groups, steps until it is told to stop or something fails.

The control thread (asyncio) talks to it by commands that return futures, by `abort`, which also frees it from a
blocked collective, and reads its `status` for the heartbeats.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

import structlog
import torch

from ryzanstein.failpoints import failpoint
from ryzanstein.logs import LogContext
from ryzanstein.v1 import cluster_pb2, shard_worker_pb2

from .communication import CommunicationProfiler
from .config import DistributedConfig
from .device import bound_memory
from .engine_status import EngineStatus
from .epoch import EpochMembership, parameter_sources, run_steps
from .fulfilment import fulfil
from .inbox import Inbox
from .pinning import Pinning
from .process_groups import Group, ProcessGroupManager
from .pulse import Pulse
from .runner import Runner
from .shard import Shard, ShardKey
from .shard_shelf import ShardShelf
from .step_loop import Publish

log = structlog.get_logger(__name__)
T = TypeVar("T")


class EngineStoppedError(Exception):
    """The engine ends; what it was asked for will not happen."""


class Engine:
    """Owns the device. Construct, `start()`, then send commands; one command runs at a time, in order."""

    def __init__(
        self,
        config: DistributedConfig,
        groups: ProcessGroupManager,
        *,
        publish: Publish,
        on_change: Callable[[], None],
        logs: LogContext | None = None,
    ) -> None:
        """
        Args:
            groups: joins and aborts process groups.
            publish: takes what each step brought, on the leader; called on the engine thread.
            on_change: called on the engine thread after `status` changed in a way that should be told at once.
            logs: gets the rank and epoch that it is in.
        """
        self._config = config
        self._groups = groups
        self._publish = publish
        self._on_change = on_change
        self._logs = LogContext({}) if logs is None else logs
        self._device = torch.device(config.device)
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._pinning = Pinning(config.pinned_to)
        self._shelf = ShardShelf()
        self._gives_way = False
        #: The shard that was asked for last, and the one that is being loaded; None: none is.
        self._wanted: ShardKey | None = None
        self._loading: ShardKey | None = None
        self._membership: EpochMembership | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._closing = False
        self.pulse = Pulse()
        self.status = EngineStatus()
        #: Done when the thread is; with an exception if a defect ended it: then this process is good for nothing.
        self.ended: Future[None] = Future()

    def start(self) -> None:
        self._thread.start()

    def load(self, request: shard_worker_pb2.LoadShardRequest) -> Future[Shard]:
        """Loads a rank's shard; one that is held costs nothing. Call in one thread only.

        A load gives way to one of another shard that is asked for behind it: the worker got another rank meanwhile,
        and nobody waits for the first any more. One more `beside` gives way to any command.

        Raises (in the future) ModelError, EngineStoppedError.
        """
        self._wanted = ShardKey.of(request)
        return self._command(lambda: self._load(request))

    @property
    def busy(self) -> bool:
        """Whether it is in a group or on its way into one."""
        return not self._idle.is_set()

    def join(self, request: shard_worker_pb2.JoinGroupRequest) -> Future[Group]:
        """Joins the epoch's group; the future is done when it stands, and the engine goes on stepping.

        One at a time: not while the engine is `busy`.
        """
        assert not self.busy, "the engine is in a group"
        joined: Future[Group] = Future()
        aborts_seen = self._groups.aborts
        self._idle.clear()
        self._commands.put(lambda: self._serve(request, joined, aborts_seen))
        return joined

    def release(self) -> Future[None]:
        """Gives back weights and cache."""
        return self._command(self._release)

    def abort(self, reason: str, timeout_s: float = 5.0) -> int:
        """Leaves the group at once, also out of a blocked collective, or a join wherever it is; the weights stay.
        Blocks until it is out. → the last step that was finished; 0 outside a group.

        Raises TimeoutError: it is not out in time.
        """
        failpoint("fence.begun")
        membership = self._membership
        self._groups.abort(reason)
        if membership is not None:
            membership.inbox.stop()
        if not self._idle.wait(timeout_s):
            raise TimeoutError(f"the engine did not leave its group within {timeout_s:.1f} s")
        return 0 if membership is None else membership.progress.step

    def close(self, leave_s: float = 1.0) -> None:
        """Ends the thread, also out of loading. A group that stands is left in order, if all of it ends within
        `leave_s`; else aborted."""
        self._closing = True
        inbox = self.inbox
        if inbox is not None:
            inbox.stop()  # the leader's last plan ends the loop of every rank
        if not self._idle.wait(leave_s):
            try:
                self.abort("the worker stops")
            except TimeoutError as error:  # the thread does not survive the process
                log.warning("engine_stuck", error=str(error))
        self._commands.put(None)
        self._thread.join(timeout=5.0)

    @property
    def inbox(self) -> Inbox | None:
        """The leader's mailbox; None on other ranks and outside a group."""
        membership = self._membership
        return membership.inbox if membership is not None and membership.group.rank == 0 else None

    @property
    def membership(self) -> EpochMembership | None:
        """The group that it is in, from the moment that it is formed."""
        return self._membership

    def progress_age_s(self) -> float:
        """Seconds since the last finished step or keep-alive; 0 outside a group."""
        membership = self._membership
        return 0.0 if membership is None else time.monotonic() - membership.progress.last_step_at

    def _command(self, run: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._commands.put(lambda: fulfil(future, run))
        return future

    def _main(self) -> None:
        try:
            self._pinning.pin()  # before torch starts its threads, which inherit it
            torch.set_num_threads(self._config.cpu_threads)
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            while (command := self._commands.get()) is not None:
                self.pulse.run(command)
        except BaseException as error:  # noqa: BLE001 - whoever started the thread ends the process
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _set(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)  # type: ignore[arg-type]
        self._on_change()

    def _load(self, request: shard_worker_pb2.LoadShardRequest) -> Shard:
        self._loading, self._gives_way = ShardKey.of(request), request.beside
        held = self._shelf.find(self._loading) is not None
        try:
            if not held:
                self._check_wanted()
            if request.beside:
                self._set(phase="loading one more rank")
            elif not held:
                self._release()  # before the new weights, not beside them
                state = cluster_pb2.WORKER_STATE_LOADING
                self._set(state=state, phase="loading", load_progress=0.0, fault=None)
            bound_memory(self._device, request.limits.memory_bytes)
            progress = self.pulse.felt_in(self._progressed)
            return self._shelf.load(request, self._config.model_dir, self._device, progress)
        except EngineStoppedError as error:
            # The frames behind it hold the weights that are there so far: they go before the next shard comes.
            raise error.with_traceback(None) from None
        finally:
            self._loading = None
            self._rest()

    def _progressed(self, fraction: float) -> None:
        if self._closing:
            raise EngineStoppedError("the worker stops")
        if self._gives_way and not self._commands.empty():
            raise EngineStoppedError("something more urgent came")
        self._check_wanted()
        if not self._gives_way:
            self.status = replace(self.status, load_progress=fraction)
        failpoint("load.progressed")

    def _check_wanted(self) -> None:
        if self._loading is not None and self._loading != self._wanted:
            raise EngineStoppedError("another shard is wanted now")

    def _release(self) -> None:
        self._shelf = ShardShelf()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._rest()

    def _rest(self, **changes: object) -> None:
        """Outside a group, with or without a shard."""
        self.status = self.status.at_rest(self._shelf)
        self._set(**changes)

    def _serve(
        self, request: shard_worker_pb2.JoinGroupRequest, joined: Future[Group], aborts_seen: int
    ) -> None:
        """The life of this rank in one epoch."""
        try:
            if not joined.set_running_or_notify_cancel():
                return
            try:
                membership, runner = self._enter(request, aborts_seen)
            except Exception as error:  # noqa: BLE001 - handed to whoever asked
                self._leave(request.epoch, None)
                joined.set_exception(error)
                return
            joined.set_result(membership.group)
            fault = run_steps(
                request, membership, runner, self._publish, keep_alive_s=self._config.keep_alive_s
            )
            self._leave(request.epoch, fault)
        finally:
            self._idle.set()

    def _enter(
        self, request: shard_worker_pb2.JoinGroupRequest, aborts_seen: int
    ) -> tuple[EpochMembership, Runner]:
        limits = request.limits
        self._logs.bind(group=request.group_id, rank=request.rank, epoch=request.epoch)
        key = ShardKey.of_rank(request.model, request.rank, len(request.members))
        shard = self._shelf.take(key)  # the others go before the pages come
        self._gives_way = False
        self._set(state=cluster_pb2.WORKER_STATE_LOADING, phase="forming", epoch=request.epoch, fault=None)
        bound_memory(self._device, limits.memory_bytes)
        failpoint("join.begun")
        with self._pinning.lifted():
            group = self._groups.join(request, self._device, aborts_seen=aborts_seen)
        membership = EpochMembership(group, Inbox(), CommunicationProfiler(group.handler))
        self._membership = membership
        shard.handler.bind(membership.profiler)
        failpoint("join.formed")
        sources = parameter_sources(request.members)
        if sources:
            self._set(phase="handing over weights")
            shard.exchange(group.handler, sources, self._device, self.pulse.felt_in(self._progressed))
        pool = shard.pool(limits, self._device)
        self._set(phase="warming up", weights_bytes=shard.weights_bytes, kv_cache_bytes=shard.kv_cache_bytes)
        device = shard.step_device(pool, limits)
        runner = Runner(shard.model, pool, cpu_threads=self._config.cpu_threads, device=device)
        runner.warm_up(limits.max_batched_tokens)
        runner.enter(membership.profiler)
        failpoint("join.warm")
        group.handler.barrier()  # no rank serves before all are warm
        self._set(state=cluster_pb2.WORKER_STATE_ACTIVE, phase="serving")
        return membership, runner

    def _leave(self, epoch: int, fault: cluster_pb2.Fault | None) -> None:
        self._membership = None  # before anybody is told that something changed
        if self._shelf.current is not None:
            self._shelf.current.leave()
        self._groups.leave(epoch)
        if fault is not None and fault.kind == "memory" and self._device.type == "cuda":
            torch.cuda.empty_cache()  # in other pieces it may be enough
        self._rest(epoch=0, fault=fault)
        self._logs.bind(group=None, rank=None, epoch=None)

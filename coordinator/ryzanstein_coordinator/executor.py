"""Carries out what the control plane decides: writes epochs, calls workers, tells the request path."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from ryzanstein.failpoints import failpoint
from ryzanstein.v1 import shard_worker_pb2

from . import actions, events
from .actions import Action
from .calls import WorkerCalls, limits_message
from .epoch_store import EpochStore, StoreError
from .events import Event
from .group_record import Cause
from .state import ClusterState
from .workers import Workers

if TYPE_CHECKING:  # generated for the type checker only
    from ryzanstein.v1.shard_worker_pb2_grpc import ShardWorkerServiceAsyncStub

log = structlog.get_logger(__name__)


class GroupListener(Protocol):
    """The request path, as the orchestrator sees it."""

    def group_ready(
        self,
        group_id: str,
        epoch: int,
        stub: ShardWorkerServiceAsyncStub,
        limits: shard_worker_pb2.EngineLimits,
    ) -> int:
        """The group serves; returns how many unfinished requests are submitted to it again."""

    def group_lost(self, group_id: str, epoch: int, reason: str, cause: Cause | None = None) -> None:
        """The group serves no more."""

    def counts(self) -> tuple[int, int]:
        """Requests that run, and that wait."""


class Executor:
    """Turns actions into I/O. What comes of it is told to `emit`, as events."""

    def __init__(
        self, workers: Workers, calls: WorkerCalls, store: EpochStore, emit: Callable[[Event], None]
    ) -> None:
        self._workers = workers
        self._calls = calls
        self._store = store
        self._emit = emit
        # Writes keep their order, and the event loop never waits for the disk.
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="epoch-store")
        self._tasks: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._writes: set[asyncio.Task[None]] = set()
        self.router: GroupListener | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """What is carried out runs in `tasks`, so that a defect ends the process with its reason."""
        self._tasks = tasks
        self._calls.start(tasks)

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Runs until it ends or the executor is closed."""
        self._start(coroutine, name, self._running)

    def carry_out(self, action: Action, state: ClusterState) -> None:
        """Starts the action and returns at once. `state` is the one that it was decided with."""
        failpoint(f"coordinator.{type(action).__name__}")
        match action:
            case actions.CommitEpoch():
                self._start(self._commit(action.epoch), f"commit-{action.epoch}", self._writes)
            case actions.RememberMembers():
                self._start(self._remember(action, state), f"remember-{action.epoch}", self._writes)
            case actions.LoadShard():
                self._calls.load(action)
            case actions.AbortWorker():
                self._calls.abort(action)
            case actions.JoinGroup():
                self._calls.join(action, state.workers)
            case actions.LeaveEpoch():
                self._calls.leave(action)
            case actions.AnnounceReady():
                self._announce_ready(action)
            case actions.AnnounceLost():
                if self.router is not None:
                    self.router.group_lost(action.group_id, action.epoch, action.reason, action.cause)
            case actions.DrainProcess():
                self._calls.drain(action)
            case actions.DropWorker():
                self._workers.drop(action.worker_id, action.incarnation)

    async def close(self) -> None:
        """Gives up what is under way, except for writes, which are waited for."""
        self._calls.cancel()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._writes)
        await self._workers.close()
        await asyncio.get_running_loop().run_in_executor(self._disk, self._store.close)
        self._disk.shutdown(wait=False)

    def _start(
        self, coroutine: Coroutine[Any, Any, None], name: str, running: set[asyncio.Task[None]]
    ) -> None:
        assert self._tasks is not None, "the orchestrator was not started"
        task = self._tasks.create_task(coroutine, name=name)
        running.add(task)
        task.add_done_callback(running.discard)

    def _announce_ready(self, action: actions.AnnounceReady) -> None:
        leader = self._workers.of(action.leader.worker_id, action.leader.incarnation)
        if self.router is None or leader is None:
            return
        limits = limits_message(action.limits)
        resumed = self.router.group_ready(action.group_id, action.epoch, leader.stub, limits)
        self._emit(events.RequestsResumed(action.group_id, action.epoch, resumed))

    async def _commit(self, epoch: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            durable = await loop.run_in_executor(self._disk, self._store.commit, epoch)
        except StoreError as error:
            log.error("epoch_not_stored", epoch=epoch, reason=str(error))
            self._emit(events.CommitFailed(epoch, str(error)))
        else:
            self._emit(events.EpochCommitted(durable))

    async def _remember(self, action: actions.RememberMembers, state: ClusterState) -> None:
        """Only a preference of a later start: a group serves without it."""
        loop = asyncio.get_running_loop()
        leader = state.workers.get(action.members[0].worker_id)
        computing = "" if leader is None else leader.computing
        arguments = (action.group_id, action.epoch, action.members, action.max_model_len, computing)
        try:
            await loop.run_in_executor(self._disk, self._store.remember, *arguments)
        except StoreError as error:
            log.warning("members_not_stored", group=action.group_id, epoch=action.epoch, reason=str(error))

"""The control plane as others see it: what workers and the router tell it, what people and the front door ask."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable

import grpc
import structlog

from ryzanstein.v1 import cluster_pb2, operations_pb2
from ryzanstein.wire import StatusError, not_found

from . import events
from .activity import Activity
from .calls import NoRendezvous, Rendezvous, WorkerCalls
from .config import OrchestratorConfig
from .control_loop import ClusterObserver, ControlLoop
from .control_plane import ControlPlane
from .epoch_history import EpochHistory
from .epoch_store import EpochStore
from .executor import Executor, GroupListener
from .plan import plan_for_cluster
from .registrar import Registrar
from .registration import check_epoch
from .resource_allocator import ResourceAllocator
from .served_model import ServedModel
from .snapshot import GroupView, cluster_snapshot, group_view, telemetry_of
from .state import ClusterState
from .worker_record import WorkerRecord
from .workers import Lines, Workers

log = structlog.get_logger(__name__)

#: A watcher gets a new snapshot so often while only telemetry changes.
REFRESH_S = 1.0


class MultiGPUOrchestrator:
    """Knows all workers, gives them ranks, forms groups and re-forms them after a fault.

    Construct, `attach` the router, `await start(...)`; then the servicers may call. `await close()` at the
    end.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        model: ServedModel,
        store: EpochStore,
        *,
        rendezvous: Rendezvous | None = None,
        observer: ClusterObserver | None = None,
        activity: Activity | None = None,
        lines: Lines | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` counts seconds and never goes back; the router must use the same one."""
        self.config = config
        self.model = model
        self.coordinator_id = uuid.uuid4().hex
        self._allocator = ResourceAllocator(config, model.config)
        self._control = ControlPlane(config, self._allocator)
        self._store = store
        self._clock = clock
        self._closed = False
        self.activity = Activity(clock=clock) if activity is None else activity
        self.activity.counts = self.counts
        self._history = EpochHistory()
        observers = (self._history,) if observer is None else (self._history, observer)
        self._loop = ControlLoop(self._control, self._initial(), clock=clock, observers=observers)
        self._workers = Workers(lines)
        self._calls = WorkerCalls(
            config,
            model,
            self.dtype,
            workers=self._workers,
            rendezvous=rendezvous or NoRendezvous(),
            emit=self._loop.happened,
        )
        self._executor = Executor(self._workers, self._calls, store, self._loop.happened)
        self._streams = 0
        self._registrar = Registrar(config, store.computing())

    # --- life

    def attach(self, router: GroupListener) -> None:
        """Who is told when a group serves and when it does not."""
        self._executor.router = router

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begins to watch the clock. All runs in `tasks`: a defect ends the process with its reason."""
        self._executor.start(tasks)
        # Waiting begins now, not when the process did. Four ticks per heartbeat.
        self._loop.start(self._executor, self._initial(), self.config.heartbeat_interval_s / 4)

    def begin_drain(self) -> None:
        """The coordinator is about to stop: it is not ready any more, but what runs is still looked after."""
        self._loop.happened(events.DrainCluster())

    async def close(self, *, drain_workers: bool = False, reason: str = "the coordinator stops") -> None:
        """Ends all calls and watchers; with `drain_workers`, asks every worker to end its process before."""
        if self._closed:
            return
        self._closed = True
        self.begin_drain()
        self._loop.close()  # that workers leave now is no fault: nothing is decided any more
        if drain_workers:
            epoch = self.state.announced_epoch
            alive = [worker for worker in self.state.workers.values() if worker.alive]
            await self._calls.drain_all(alive, epoch, reason)
        self._loop.changes.close()
        await self._executor.close()

    # --- what ClusterService calls

    def register(self, request: cluster_pb2.RegisterRequest) -> cluster_pb2.RegisterResponse:
        """Takes a worker in.

        Raises:
            StatusError: it can't be taken; see `registration.examine`.
        """
        worker = self._registrar.take_in(self._clock(), self.state, request, self._workers.open)
        self._loop.happened(events.Registered(worker, request.highest_epoch))
        return cluster_pb2.RegisterResponse(
            epoch=self.state.announced_epoch,
            coordinator_id=self.coordinator_id,
            lease_ttl_s=self.config.lease_ttl_s,
            heartbeat_interval_s=self.config.heartbeat_interval_s,
        )

    def open_stream(self, worker_id: str, incarnation: str) -> int:
        """A heartbeat stream began; returns its number.

        Raises:
            StatusError: FAILED_PRECONDITION if another process has this id now, ABORTED if the worker has to
                register first.
        """
        self._process(worker_id, incarnation)
        self._streams += 1
        self._loop.happened(events.StreamOpened(worker_id, incarnation, self._streams))
        return self._streams

    def heartbeat(self, request: cluster_pb2.HeartbeatRequest) -> cluster_pb2.HeartbeatResponse:
        """Takes a heartbeat. Raises as `open_stream`, and INVALID_ARGUMENT for an epoch that can't be."""
        worker = self._process(request.worker_id, request.incarnation)
        check_epoch(request.epoch, request.worker_id)
        report = telemetry_of(self._clock(), request, worker.device.total_bytes)
        self._loop.happened(events.Beat(request.worker_id, request.incarnation, report))
        group = self.state.group(worker.group or "")
        epoch = self.state.announced_epoch if group is None else group.epoch
        return cluster_pb2.HeartbeatResponse(epoch=epoch, sequence=request.sequence)

    def end_stream(self, worker_id: str, incarnation: str, stream: int, reason: str = "") -> None:
        """A heartbeat stream is over: the first sign of a death."""
        self._loop.happened(events.StreamEnded(worker_id, incarnation, stream, reason))

    # --- what the router calls (observers.GroupEvents)

    def stream_broken(self, group_id: str, epoch: int, reason: str) -> None:
        """The leader's Execute stream ended, or could not be opened."""
        self._loop.happened(events.ExecuteBroken(group_id, epoch, reason))

    def stream_alive(self, group_id: str, epoch: int, *, flows: bool = False) -> None:
        """The leader has taken the Execute stream, and perhaps sent tokens on it."""
        self._loop.happened(events.ExecuteAlive(group_id, epoch, flows))

    def resumed_gone(self, group_id: str, epoch: int) -> None:
        """Nobody waits any more for what was submitted again."""
        self._loop.happened(events.ResumedGone(group_id, epoch))

    def first_token_after_ready(self, group_id: str, epoch: int, now_s: float) -> None:
        """The first token of the epoch arrived."""
        self._loop.happened(events.FirstToken(group_id, epoch, now_s))

    # --- what people and the front door ask

    @property
    def state(self) -> ClusterState:
        """All that is known, as of now."""
        return self._loop.state

    @property
    def now_s(self) -> float:
        """The clock that all moments in the state are on."""
        return self._clock()

    @property
    def dtype(self) -> str:
        """What the model is computed in."""
        return self._allocator.dtype

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together; what the model allows, until the memory is planned."""
        planned = [group.limits.max_model_len for group in self.state.groups if group.limits is not None]
        return min(planned, default=self.config.max_model_len or self.model.config.context_length)

    def readiness(self, now_s: float | None = None) -> tuple[bool, str]:
        """Whether a request sent now would be generated, and why (not). /readyz and gRPC health ask here."""
        if self._loop.closed:
            return False, "the server is stopping"
        return self._control.monitor.readiness(self._clock() if now_s is None else now_s, self.state)

    def groups(self) -> tuple[GroupView, ...]:
        """All groups, in the order of their ids."""
        return tuple(group_view(self.state, group) for group in self.state.groups)

    def counts(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        router = self._executor.router
        return (0, 0) if router is None else router.counts()

    def snapshot(self) -> operations_pb2.ClusterSnapshot:
        """The cluster now; ages are as of this call."""
        return cluster_snapshot(
            self._clock(),
            self.state,
            config=self.config,
            model=self.model,
            dtype=self.dtype,
            max_model_len=self.max_model_len,
            counts=self.counts(),
            readiness=self.readiness(),
            traffic=self.activity.recent(),
            history=self._history.records,
            unix_s=time.time(),
        )

    def watch(self, refresh_s: float = REFRESH_S) -> AsyncIterator[operations_pb2.ClusterSnapshot | None]:
        """A snapshot now, after every change, and every `refresh_s` while only telemetry changes; None after
        `refresh_s` without anything new. Ends when the orchestrator closes.
        """
        return self._loop.changes.follow(
            lambda: (self.state.revision, self.state.telemetry, self.counts()), self.snapshot, refresh_s
        )

    def drain_worker(self, worker_id: str) -> int:
        """Takes a worker out of service: a standby ends at once, a rank when a standby has taken its place.

        Returns:
            The epoch of its group.

        Raises:
            StatusError: NOT_FOUND; FAILED_PRECONDITION if nobody can take its rank.
        """
        worker = self.state.workers.get(worker_id)
        if worker is None or not worker.alive:
            known = ", ".join(sorted(w.worker_id for w in self.state.workers.values() if w.alive)) or "none"
            raise not_found(f"there is no worker {worker_id!r}; workers are: {known}")
        if worker.rank is not None and not self._control.can_spare(self._clock(), self.state, worker):
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{worker_id} holds rank {worker.rank} of group {worker.group} and no standby can take it; "
                "start another worker first, or stop its process: streams then wait for its replacement",
            )
        self._loop.happened(events.DrainWorker(worker_id))
        group = self.state.group(worker.group or "")
        return self.state.announced_epoch if group is None else group.epoch

    def plan_memory(self, request: operations_pb2.PlanMemoryRequest) -> operations_pb2.PlanMemoryResponse:
        """The ledger for a tensor-parallel size on this model. Raises StatusError as `plan_for_cluster`."""
        response = plan_for_cluster(self.config, self.model.config, self.state, request)
        response.epoch = self.state.announced_epoch
        return response

    def _initial(self) -> ClusterState:
        return self._control.initial(
            self._clock(),
            committed_epoch=self._store.highest(),
            previous=self._store.members(),
            model_lengths=self._store.model_lengths(),
        )

    def _process(self, worker_id: str, incarnation: str) -> WorkerRecord:
        worker = self.state.workers.get(worker_id)
        if worker is not None and incarnation in worker.replaced:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"worker id {worker_id!r} was taken over by the process {worker.pid} on {worker.host}",
            )
        if worker is None or worker.incarnation != incarnation or not worker.alive:
            reason = worker.lost_reason if worker is not None else ""
            raise StatusError(
                grpc.StatusCode.ABORTED, f"{worker_id}: {reason or 'unknown process'}; register again"
            )
        return worker

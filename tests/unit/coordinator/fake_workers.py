"""Workers that are real gRPC servers and real clients of the coordinator, without an engine behind them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION
from ryzanstein.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    operations_pb2_grpc,
    shard_worker_pb2,
    shard_worker_pb2_grpc,
)
from ryzanstein.wire import (
    CHANNEL_OPTIONS,
    SERVER_OPTIONS,
    StatusError,
    StatusInterceptor,
    invalid_argument,
    unavailable,
)
from ryzanstein_coordinator.cluster_service import ClusterServicer
from ryzanstein_coordinator.config import OrchestratorConfig
from ryzanstein_coordinator.epoch_store import EpochStore
from ryzanstein_coordinator.group_record import Cause
from ryzanstein_coordinator.metrics import Metrics
from ryzanstein_coordinator.operations_service import OperationsServicer
from ryzanstein_coordinator.orchestrator import MultiGPUOrchestrator
from ryzanstein_coordinator.served_model import ServedModel

from .cluster_builders import GIB, MIB, tiny_model

MODEL = ServedModel(
    name="tiny", path="/models/tiny", config=tiny_model(), fingerprint="f00d", parameters=123_456
)


class RecordingRouter:
    """Remembers what the orchestrator told it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.resumed = 0
        self.limits: shard_worker_pb2.EngineLimits | None = None
        self.leader_rank: int | None = None
        #: Told that the stream lives, as soon as a group is ready.
        self.on_ready: Callable[[str, int], None] = lambda group_id, epoch: None

    def group_ready(self, group_id: str, epoch: int, stub: Any, limits: shard_worker_pb2.EngineLimits) -> int:
        self.told.append(("ready", group_id, epoch))
        self.limits = limits
        self.on_ready(group_id, epoch)
        return self.resumed

    def group_lost(self, group_id: str, epoch: int, reason: str, cause: Cause | None = None) -> None:
        self.told.append(("lost", group_id, epoch))

    def counts(self) -> tuple[int, int]:
        return 2, 1


@dataclass
class Cluster:
    """A coordinator's control plane behind its real services."""

    orchestrator: MultiGPUOrchestrator
    router: RecordingRouter
    metrics: Metrics
    address: str
    internal_errors: list[BaseException]
    workers: dict[str, FakeWorker] = field(default_factory=dict)

    async def start(self, *worker_ids: str, **changes: Any) -> None:
        """Starts workers; one that ran under the same id must be gone."""
        for worker_id in worker_ids:
            number = self.workers[worker_id].number + 1 if worker_id in self.workers else 1
            worker = FakeWorker(worker_id, number, self.address, **changes)
            self.workers[worker_id] = worker
            await worker.start()

    async def until(self, condition: Callable[[], bool], within_s: float = 20.0) -> None:
        """Waits for a change that makes the condition true."""
        async with asyncio.timeout(within_s):
            async for _ in self.orchestrator.watch(refresh_s=0.02):
                if condition():
                    return

    async def until_serving(self) -> int:
        await self.until(lambda: self.orchestrator.readiness()[0])
        return self.orchestrator.state.groups[0].epoch

    @property
    def members(self) -> list[str]:
        return [member.worker_id for member in self.orchestrator.state.groups[0].members]


@contextlib.asynccontextmanager
async def running_cluster(config: OrchestratorConfig, state_dir: Path) -> AsyncIterator[Cluster]:
    """A coordinator that listens on a port of its own, and the end of all workers that a test started."""
    errors: list[BaseException] = []
    metrics, router = Metrics(), RecordingRouter()
    orchestrator = MultiGPUOrchestrator(
        config, MODEL, EpochStore(state_dir), observer=metrics, activity=metrics.activity
    )
    orchestrator.attach(router)
    router.on_ready = orchestrator.stream_alive
    server = grpc.aio.server(
        interceptors=[StatusInterceptor(lambda _, error: errors.append(error))], options=SERVER_OPTIONS
    )
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(orchestrator), server)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(OperationsServicer(orchestrator), server)
    port = server.add_insecure_port("127.0.0.1:0")
    cluster = Cluster(orchestrator, router, metrics, f"127.0.0.1:{port}", errors)
    async with asyncio.TaskGroup() as tasks:
        await orchestrator.start(tasks)
        await server.start()
        try:
            yield cluster
        finally:
            await orchestrator.close()
            for worker in cluster.workers.values():
                await worker.die()
            await server.stop(grace=None)
    assert errors == []


class FakeWorker(shard_worker_pb2_grpc.ShardWorkerServiceServicer):
    """Answers as a worker does: epochs are checked, a join waits for all members, an abort ends it."""

    #: Attempts to form a group, by epoch: who has come.
    _attempts: dict[tuple[str, str], dict[str, asyncio.Future[None]]] = {}  # noqa: RUF012 - shared on purpose

    def __init__(
        self,
        worker_id: str,
        number: int,
        coordinator: str,
        *,
        checkpoint: str = "f00d",
        has_files: bool = True,
        numerics: int = NUMERICS_VERSION,
        total_bytes: int = 8 * GIB,
    ) -> None:
        self.worker_id, self.number = worker_id, number
        self.incarnation = f"{worker_id}-{number}"
        self.coordinator = coordinator
        self.checkpoint, self.has_files = checkpoint, has_files
        self.numerics, self.total_bytes = numerics, total_bytes
        self.epoch = 0
        self.inside: tuple[str, int] | None = None
        self.attempt: tuple[str, str] | None = None
        self.loads: list[shard_worker_pb2.LoadShardRequest] = []
        self.joins: list[shard_worker_pb2.JoinGroupRequest] = []
        self.aborts: list[shard_worker_pb2.AbortRequest] = []
        self.drained = asyncio.Event()
        #: Drain is answered so long after the heartbeat stream has ended.
        self.answers_drain_late_s = 0.0
        self.fault: cluster_pb2.Fault | None = None
        self.health: cluster_pb2.DeviceHealth | None = None
        self.refused = ""
        self._silent = False
        self._beats = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._life: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(
            interceptors=[StatusInterceptor(lambda method, error: None)], options=SERVER_OPTIONS
        )
        shard_worker_pb2_grpc.add_ShardWorkerServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        self._life = asyncio.create_task(self._live(f"127.0.0.1:{port}"))

    async def die(self) -> None:
        """All its connections end at once."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(grace=None)
        self._leave()

    def hang(self) -> None:
        """Its connections stay, but nothing comes any more."""
        self._silent = True

    def wake(self) -> None:
        self._silent = False
        self._beats.set()

    def report(self, fault: cluster_pb2.Fault) -> None:
        """A heartbeat with a fault, now."""
        self.fault = fault
        self._beats.set()

    async def _live(self, address: str) -> None:
        while not self.refused:
            try:
                async with grpc.aio.insecure_channel(self.coordinator, options=CHANNEL_OPTIONS) as channel:
                    stub = cluster_pb2_grpc.ClusterServiceStub(channel)
                    reply = await stub.Register(self._registration(address))
                    async for _ in stub.Heartbeat(self._heartbeats(reply.heartbeat_interval_s)):
                        pass
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    self.refused = error.details() or "refused"

    async def _heartbeats(self, interval_s: float) -> AsyncIterator[cluster_pb2.HeartbeatRequest]:
        sequence = 0
        while True:
            self._beats.clear()
            if not self._silent:
                sequence += 1
                yield cluster_pb2.HeartbeatRequest(
                    worker_id=self.worker_id,
                    incarnation=self.incarnation,
                    sequence=sequence,
                    epoch=self.inside[1] if self.inside else 0,
                    phase="serving" if self.inside else "waiting",
                    step=sequence if self.inside else 0,
                    step_duration_s=0.01,
                    communication_ratio=0.25,
                    fault=self.fault,
                    memory=cluster_pb2.MemoryUse(weights_bytes=5 * MIB, used_bytes=300 * MIB),
                    last_collective=cluster_pb2.LastCollective(name="all_reduce", sequence=sequence),
                    communication_seconds={"all_reduce": 0.002 * sequence} if self.inside else {},
                    communication_bytes={"all_reduce": 4096 * sequence} if self.inside else {},
                    communication_operations={"all_reduce": 2 * sequence} if self.inside else {},
                    device_health=self.health,
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._beats.wait()

    def _registration(self, address: str) -> cluster_pb2.RegisterRequest:
        return cluster_pb2.RegisterRequest(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            host="alpha",
            host_id="alpha",
            pid=1000 + self.number,
            address=address,
            device=cluster_pb2.Device(
                name="cpu",
                kind="cpu",
                model="a processor",
                total_bytes=self.total_bytes,
                free_bytes=self.total_bytes,
                baseline_bytes=200 * MIB,
            ),
            versions=cluster_pb2.Versions(release="0.1.0", wire=WIRE_VERSION, numerics=self.numerics),
            highest_epoch=self.epoch,
        )

    def _advance(self, epoch: int) -> None:
        if epoch < self.epoch:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION, f"epoch {epoch} is over; it is {self.epoch}"
            )
        self.epoch = epoch

    async def LoadShard(  # noqa: N802
        self, request: shard_worker_pb2.LoadShardRequest, context: Any
    ) -> shard_worker_pb2.LoadShardResponse:
        self._advance(request.epoch)
        self.loads.append(request)
        if request.model.fingerprint != self.checkpoint:
            raise invalid_argument(f"another checkpoint: {self.checkpoint}")
        return shard_worker_pb2.LoadShardResponse(
            epoch=self.epoch,
            loaded=self.has_files,
            has_files=self.has_files,
            weights_bytes=5 * MIB,
        )

    async def JoinGroup(  # noqa: N802
        self, request: shard_worker_pb2.JoinGroupRequest, context: Any
    ) -> shard_worker_pb2.JoinGroupResponse:
        self._advance(request.epoch)
        self.joins.append(request)
        self.inside, self.fault = (request.group_id, request.epoch), None
        self.attempt = (request.group_id, request.nonce)
        here = self._attempts.setdefault(self.attempt, {})
        here[self.incarnation] = asyncio.get_running_loop().create_future()
        if len(here) == len(request.members):
            for future in here.values():
                future.set_result(None)
        await here[self.incarnation]
        self._beats.set()
        return shard_worker_pb2.JoinGroupResponse(epoch=self.epoch, backend=request.backend)

    async def Abort(  # noqa: N802
        self, request: shard_worker_pb2.AbortRequest, context: Any
    ) -> shard_worker_pb2.AbortResponse:
        self._advance(request.epoch)
        self.aborts.append(request)
        self._leave()
        self._beats.set()
        return shard_worker_pb2.AbortResponse(epoch=self.epoch, last_step=1)

    async def Drain(  # noqa: N802
        self, request: shard_worker_pb2.DrainRequest, context: Any
    ) -> shard_worker_pb2.DrainResponse:
        self._advance(request.epoch)
        self.drained.set()
        if self._life is not None:
            self._life.cancel()
        await asyncio.sleep(self.answers_drain_late_s)
        return shard_worker_pb2.DrainResponse(epoch=self.epoch)

    def Execute(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError

    async def Release(  # noqa: N802
        self, request: shard_worker_pb2.ReleaseRequest, context: Any
    ) -> shard_worker_pb2.ReleaseResponse:
        raise NotImplementedError

    def _leave(self) -> None:
        self.inside = None
        for future in self._attempts.pop(self.attempt or ("", ""), {}).values():
            if not future.done():
                future.set_exception(unavailable("a peer has left"))

"""The worker's side of the control plane: it registers, proves that it lives, and comes back when cut off."""

from __future__ import annotations

import asyncio
import os
import platform
import socket
import uuid
from collections.abc import AsyncIterator, Callable

import grpc
import structlog
import torch

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION, __version__
from ryzanstein.join_calls import Dialer
from ryzanstein.join_proof import Role
from ryzanstein.settings import SettingsError
from ryzanstein.v1 import cluster_pb2, cluster_pb2_grpc

from .config import DistributedConfig
from .device import describe, host_id, peak_bytes, used_bytes
from .device_reading import DeviceReading
from .engine import Engine

log = structlog.get_logger(__name__)


class RefusedError(Exception):
    """The coordinator will never take this worker as it is; the message is the coordinator's reason."""


class Membership:
    """Keeps one worker registered. `run()` goes on until it is cancelled or the coordinator refuses the worker."""

    def __init__(
        self,
        config: DistributedConfig,
        engine: Engine,
        *,
        health: Callable[[], DeviceReading],
        named_epoch: Callable[[], int] = lambda: 0,
        dialer: Dialer | None = None,
    ) -> None:
        """`health`: what the device said last. `named_epoch`: the highest epoch that calls to this worker have named,
        which may be ahead of the heartbeats. `dialer`: how the coordinator is called; None: without any proof."""
        self._dialer = dialer or Dialer(Role.WORKER)
        self._config = config
        self._engine = engine
        self._named_epoch = named_epoch
        self._device = torch.device(config.device)
        self._incarnation = uuid.uuid4().hex
        self._changed = asyncio.Event()
        self.draining = False
        self._health = health
        self._failure_sent = 0
        #: The coordinator knows that the device has failed.
        self.failure_told = asyncio.Event()
        self.highest_epoch = 0
        #: The coordinator has registered this process, and the stream of its heartbeats stands.
        self.connected = False
        #: It has been registered before.
        self._taken = False

    def changed(self) -> None:
        """Something happened that the coordinator should know now, not at the next beat. Call in the loop's thread."""
        self._changed.set()

    def drain(self) -> None:
        """Tells the coordinator that this worker is about to leave."""
        self.draining = True
        self.changed()

    async def run(self, address: str) -> None:
        """Registers `address` (of this worker's own server) and beats; after a loss it registers again.

        Raises:
            RefusedError: versions, identity or checkpoint don't fit.
        """
        registration = self._registration(address)
        attempt = 0
        while True:
            try:
                async with self._dialer.aio(self._config.coordinator, tls=self._dialer.encrypts) as channel:
                    stub = cluster_pb2_grpc.ClusterServiceStub(self._dialer.proving(channel))
                    # Calls of an older epoch are refused here: a coordinator that was started again must know.
                    registration.highest_epoch = max(self.highest_epoch, self._named_epoch())
                    reply = await stub.Register(registration, timeout=5.0)
                    log.info(
                        "registered", coordinator=self._config.coordinator, worker=self._config.worker_id
                    )
                    attempt = 0
                    self.connected = self._taken = True
                    await self._beat(stub, reply.heartbeat_interval_s)
            except grpc.aio.AioRpcError as error:
                if self._is_final(error.code()):
                    raise RefusedError(error.details() or "the coordinator refused this worker") from None
                if attempt == 0:  # on change, not on every try
                    log.warning(
                        "coordinator_away",
                        coordinator=self._config.coordinator,
                        status=error.code().name.lower(),
                        reason=error.details(),
                    )
            except SettingsError as error:  # a certificate that is being replaced: the weights stay meanwhile
                if attempt == 0:
                    log.warning("coordinator_not_called", reason=str(error))
            self.connected = False
            attempt += 1
            # A restarted coordinator is back within a second or two, and streams wait for this worker.
            await asyncio.sleep(0.1 if attempt < 50 else 0.25)

    def _is_final(self, status: grpc.StatusCode) -> bool:
        """Whether trying again can't help. A worker that was a member before keeps its weights while tokens change."""
        if status is grpc.StatusCode.UNAUTHENTICATED:
            return not self._taken
        return status in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)

    async def _beat(self, stub: cluster_pb2_grpc.ClusterServiceAsyncStub, interval_s: float) -> None:
        """One heartbeat stream, until either side ends it."""
        async for reply in stub.Heartbeat(self._heartbeats(interval_s)):
            self.highest_epoch = max(self.highest_epoch, reply.epoch)
            if 0 < self._failure_sent <= reply.sequence:
                self.failure_told.set()

    async def _heartbeats(self, interval_s: float) -> AsyncIterator[cluster_pb2.HeartbeatRequest]:
        sequence = self._failure_sent = 0
        while True:
            sequence += 1
            self._changed.clear()
            yield self._heartbeat(sequence)
            try:
                async with asyncio.timeout(interval_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _heartbeat(self, sequence: int) -> cluster_pb2.HeartbeatRequest:
        status = self._engine.status
        beat = cluster_pb2.HeartbeatRequest(
            worker_id=self._config.worker_id,
            incarnation=self._incarnation,
            sequence=sequence,
            epoch=status.epoch,
            state=cluster_pb2.WORKER_STATE_DRAINING if self.draining else status.state,
            phase=status.phase,
            load_progress=status.load_progress,
            fault=status.fault,
            memory=cluster_pb2.MemoryUse(
                weights_bytes=status.weights_bytes,
                kv_cache_bytes=status.kv_cache_bytes,
                used_bytes=used_bytes(self._device),
                peak_bytes=peak_bytes(self._device),
            ),
        )
        health = self._health()
        beat.device_health.CopyFrom(
            cluster_pb2.DeviceHealth(
                failure=health.failure,
                utilization_ratio=health.utilization_ratio,
                temperature_celsius=health.temperature_celsius,
                ecc_errors=health.ecc_errors,
            )
        )
        if health.failure and not self._failure_sent:
            self._failure_sent = sequence
        membership = self._engine.membership
        if membership is not None:
            progress = membership.progress
            beat.step = progress.step
            beat.step_duration_s = progress.step_duration_s
            beat.progress_age_s = self._engine.progress_age_s()
            beat.communication_ratio = membership.profiler.ratio
            for operation, totals in membership.profiler.totals().items():
                beat.communication_seconds[operation] = totals.seconds
                beat.communication_bytes[operation] = totals.bytes
                beat.communication_operations[operation] = totals.count
            last = membership.profiler.last
            beat.last_collective.CopyFrom(
                cluster_pb2.LastCollective(name=last.operation, sequence=last.sequence)
            )
        return beat

    def _registration(self, address: str) -> cluster_pb2.RegisterRequest:
        config = self._config
        return cluster_pb2.RegisterRequest(
            worker_id=config.worker_id,
            incarnation=self._incarnation,
            host=socket.gethostname(),
            host_id=host_id(),
            pid=os.getpid(),
            address=address,
            tls=self._config.tls.serves,
            device=describe(self._device, config.cpu_threads),
            versions=cluster_pb2.Versions(
                release=__version__,
                wire=WIRE_VERSION,
                numerics=NUMERICS_VERSION,
                torch=str(torch.__version__),
                python=platform.python_version(),
            ),
            model_dir=str(config.model_dir or ""),
            cpu_threads=config.cpu_threads,
        )

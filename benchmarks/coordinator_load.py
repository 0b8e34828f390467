"""What `benchmarks.coordinator` loads a coordinator with: workers that only talk, and clients that only count."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from ryzanstein import NUMERICS_VERSION, WIRE_VERSION
from ryzanstein.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    shard_worker_pb2,
    shard_worker_pb2_grpc,
)
from ryzanstein.v1.sampling_pb2 import SamplingParams
from ryzanstein.wire import CHANNEL_OPTIONS, EPOCH_KEY, MAX_STREAMS_PER_CONNECTION, SERVER_OPTIONS

#: A token says when it was made: the milliseconds of the clock, so far.
CLOCK_MS = 1000
_GIB = 2**30
#: Of the streams that get a token at a time, so that they come evenly.
_SLICES = 20


def clock_ms() -> int:
    """The same in all processes of a host."""
    return int(time.monotonic() * 1000) % CLOCK_MS


class TalkingWorkers(shard_worker_pb2_grpc.ShardWorkerServiceServicer):
    """Any number of workers at one address: all hold their shard at once, and whoever leads makes tokens at a rate."""

    def __init__(self, tokens_per_s: float) -> None:
        self._tokens_per_s = tokens_per_s
        self._epoch = 0
        #: Who leads, and in which epoch.
        self._inside: tuple[str, int] | None = None

    async def run(self, coordinator: str, count: int, beats_hz: float) -> None:
        """Registers them, and beats until it is cancelled."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        shard_worker_pb2_grpc.add_ShardWorkerServiceServicer_to_server(self, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        channels = [
            # Of the same process and target gRPC would make one connection.
            grpc.aio.insecure_channel(coordinator, options=(*CHANNEL_OPTIONS, ("bench.number", number)))
            for number in range(count // MAX_STREAMS_PER_CONNECTION + 2)
        ]
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                stub = cluster_pb2_grpc.ClusterServiceStub(channels[number % len(channels)])
                tasks.create_task(self._live(stub, address, number, 1.0 / beats_hz))

    async def _live(self, stub: Any, address: str, number: int, interval_s: float) -> None:
        await asyncio.sleep(number / 200)  # they don't come, nor beat, at the same moment
        while True:
            try:
                await stub.Register(_registration(address, number), wait_for_ready=True)
                async for _ in stub.Heartbeat(self._heartbeats(number, interval_s)):
                    pass
            except grpc.aio.AioRpcError as error:
                print(f"w{number}: {error.code().name}: {error.details()}", file=sys.stderr)
                await asyncio.sleep(0.1)

    async def _heartbeats(
        self, number: int, interval_s: float
    ) -> AsyncIterator[cluster_pb2.HeartbeatRequest]:
        for sequence in itertools.count(1):
            leads = self._inside if self._inside and self._inside[0] == f"w{number}" else None
            yield cluster_pb2.HeartbeatRequest(
                worker_id=f"w{number}",
                incarnation=f"w{number}-1",
                sequence=sequence,
                epoch=leads[1] if leads else 0,
                phase="serving" if leads else "waiting",
                step=sequence if leads else 0,
                memory=cluster_pb2.MemoryUse(weights_bytes=2**20, used_bytes=2**28),
            )
            await asyncio.sleep(interval_s)

    async def LoadShard(  # noqa: N802 - the names are the protocol's
        self, request: shard_worker_pb2.LoadShardRequest, context: Any
    ) -> shard_worker_pb2.LoadShardResponse:
        return shard_worker_pb2.LoadShardResponse(
            epoch=request.epoch, loaded=True, has_files=True, weights_bytes=2**20
        )

    async def JoinGroup(  # noqa: N802
        self, request: shard_worker_pb2.JoinGroupRequest, context: Any
    ) -> shard_worker_pb2.JoinGroupResponse:
        self._inside = (request.members[0].worker_id, request.epoch)
        return shard_worker_pb2.JoinGroupResponse(epoch=request.epoch, backend=request.backend)

    async def Abort(  # noqa: N802
        self, request: shard_worker_pb2.AbortRequest, context: Any
    ) -> shard_worker_pb2.AbortResponse:
        return shard_worker_pb2.AbortResponse(epoch=request.epoch)

    async def Drain(  # noqa: N802
        self, request: shard_worker_pb2.DrainRequest, context: Any
    ) -> shard_worker_pb2.DrainResponse:
        return shard_worker_pb2.DrainResponse(epoch=request.epoch)

    async def Release(  # noqa: N802
        self, request: shard_worker_pb2.ReleaseRequest, context: Any
    ) -> shard_worker_pb2.ReleaseResponse:
        return shard_worker_pb2.ReleaseResponse(epoch=request.epoch)

    async def Execute(  # noqa: N802
        self, requests: AsyncIterator[shard_worker_pb2.ExecuteRequest], context: Any
    ) -> AsyncIterator[shard_worker_pb2.ExecuteResponse]:
        assert self._inside is not None
        epoch, counts = self._inside[1], dict[int, int]()

        async def listen() -> None:
            async for request in requests:
                if request.HasField("submit"):
                    counts[request.submit.sequence_id] = len(request.submit.emitted_token_ids)
                else:
                    counts.pop(request.cancel.sequence_id, None)

        listening = asyncio.create_task(listen())
        try:
            await context.send_initial_metadata(((EPOCH_KEY, str(epoch)),))
            begun_s = time.monotonic()
            for step in itertools.count(1):
                if counts:
                    yield self._step(epoch, step, counts)
                each_s = max(len(counts), 1) / self._tokens_per_s / _SLICES
                begun_s = max(
                    begun_s + each_s, time.monotonic() - 1.0
                )  # what is late is made up for, up to a second
                await asyncio.sleep(max(0.0, begun_s - time.monotonic()))
        finally:
            listening.cancel()

    def _step(self, epoch: int, step: int, counts: dict[int, int]) -> shard_worker_pb2.ExecuteResponse:
        token = clock_ms()
        outputs = []
        for sequence_id in [known for known in counts if known % _SLICES == step % _SLICES]:
            outputs.append(
                shard_worker_pb2.SequenceOutput(
                    sequence_id=sequence_id, first_index=counts[sequence_id], token_ids=[token]
                )
            )
            counts[sequence_id] += 1
        stats = shard_worker_pb2.SchedulerStats(running=len(counts), blocks_total=2**16)
        return shard_worker_pb2.ExecuteResponse(
            epoch=epoch, step=step, outputs=outputs, stats=stats, step_duration_s=0.01
        )


def _registration(address: str, number: int) -> cluster_pb2.RegisterRequest:
    return cluster_pb2.RegisterRequest(
        worker_id=f"w{number}",
        incarnation=f"w{number}-1",
        host=f"host-{number}",
        host_id=f"host-{number}",
        pid=1000 + number,
        address=address,
        device=cluster_pb2.Device(
            name="cpu", kind="cpu", model="none", total_bytes=64 * _GIB, free_bytes=64 * _GIB
        ),
        versions=cluster_pb2.Versions(release="0.1.0", wire=WIRE_VERSION, numerics=NUMERICS_VERSION),
    )


class CountingClients:
    """Streams that nobody reads but for when each token came."""

    def __init__(self, coordinator: str, streams: int) -> None:
        self._coordinator = coordinator
        self._streams = streams
        #: Every stream has had a token, or has failed.
        self.all_open = asyncio.Event()
        self._waiting = streams
        #: Milliseconds from a worker to here, of each token since `reset`.
        self.late_ms: list[int] = []
        self.failures: list[str] = []

    def reset(self) -> None:
        self.late_ms = []

    async def run(self) -> None:
        """Opens them, and reads until it is cancelled."""
        channels = [
            grpc.aio.insecure_channel(self._coordinator, options=(*CHANNEL_OPTIONS, ("bench.number", number)))
            for number in range(self._streams // MAX_STREAMS_PER_CONNECTION + 2)
        ]
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._streams):
                stub = inference_pb2_grpc.InferenceServiceStub(channels[number % len(channels)])
                tasks.create_task(self._read(stub))
                if number % 50 == 49:
                    await asyncio.sleep(0.05)

    async def _read(self, stub: Any) -> None:
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=[1, 2, 3, 4]),
            sampling=SamplingParams(max_tokens=3000, temperature=0.0, ignore_eos=True),
        )
        first = True
        try:
            async for response in stub.Generate(request):
                if response.event.HasField("tokens"):
                    now_ms = clock_ms()
                    if first:
                        self._one_less()
                    first = False
                    self.late_ms += [(now_ms - token) % CLOCK_MS for token in response.event.tokens.token_ids]
        except grpc.aio.AioRpcError as error:
            self.failures.append(f"{error.code().name}: {error.details()}")
            if first:
                self._one_less()

    def _one_less(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self.all_open.set()

"""ClusterService: what workers call. Decode, one call on the orchestrator, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from ryzanstein.v1 import cluster_pb2, cluster_pb2_grpc

from .orchestrator import MultiGPUOrchestrator

Context = grpc.aio.ServicerContext[Any, Any]


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    """Registration and heartbeats."""

    def __init__(self, orchestrator: MultiGPUOrchestrator) -> None:
        self._orchestrator = orchestrator

    async def Register(  # noqa: N802 - the name is the protocol's
        self, request: cluster_pb2.RegisterRequest, context: Context
    ) -> cluster_pb2.RegisterResponse:
        return self._orchestrator.register(request)

    async def Heartbeat(  # noqa: N802
        self, request_iterator: AsyncIterator[cluster_pb2.HeartbeatRequest], context: Context
    ) -> AsyncIterator[cluster_pb2.HeartbeatResponse]:
        """One stream is one life sign: whatever ends it, the orchestrator is told at once."""
        worker_id, incarnation, stream = "", "", 0
        try:
            async for request in request_iterator:
                if not stream:
                    worker_id, incarnation = request.worker_id, request.incarnation
                    stream = self._orchestrator.open_stream(worker_id, incarnation)
                yield self._orchestrator.heartbeat(request)
        finally:
            if stream:
                self._orchestrator.end_stream(worker_id, incarnation, stream)

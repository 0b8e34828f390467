"""OperationsService: what people and dashboards call. Decode, one call on the orchestrator, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from ryzanstein.v1 import operations_pb2, operations_pb2_grpc

from .orchestrator import MultiGPUOrchestrator

Context = grpc.aio.ServicerContext[Any, Any]


class OperationsServicer(operations_pb2_grpc.OperationsServiceServicer):
    """Looks at the cluster and takes workers out of it."""

    def __init__(self, orchestrator: MultiGPUOrchestrator) -> None:
        self._orchestrator = orchestrator

    async def GetCluster(  # noqa: N802 - the name is the protocol's
        self, request: operations_pb2.GetClusterRequest, context: Context
    ) -> operations_pb2.GetClusterResponse:
        cluster = self._orchestrator.snapshot()
        return operations_pb2.GetClusterResponse(epoch=cluster.epoch, cluster=cluster)

    async def WatchCluster(  # noqa: N802
        self, request: operations_pb2.WatchClusterRequest, context: Context
    ) -> AsyncIterator[operations_pb2.WatchClusterResponse]:
        async for cluster in self._orchestrator.watch():
            if cluster is not None:
                yield operations_pb2.WatchClusterResponse(epoch=cluster.epoch, cluster=cluster)

    async def DrainWorker(  # noqa: N802
        self, request: operations_pb2.DrainWorkerRequest, context: Context
    ) -> operations_pb2.DrainWorkerResponse:
        epoch = self._orchestrator.drain_worker(request.worker_id)
        return operations_pb2.DrainWorkerResponse(epoch=epoch)

    async def PlanMemory(  # noqa: N802
        self, request: operations_pb2.PlanMemoryRequest, context: Context
    ) -> operations_pb2.PlanMemoryResponse:
        return self._orchestrator.plan_memory(request)

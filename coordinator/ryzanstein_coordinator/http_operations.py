"""HTTP for operators: is it alive, can it serve, what is the cluster doing, what are the numbers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ryzanstein.wire import to_plain

from .metrics import Metrics
from .orchestrator import MultiGPUOrchestrator

#: Proxies and browsers drop a connection on which nothing comes for long.
_EVENT_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def operations_routes(orchestrator: MultiGPUOrchestrator, metrics: Metrics) -> APIRouter:
    """Routes to include into the coordinator's application."""
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez", summary="The process runs")
    async def livez() -> JSONResponse:
        return JSONResponse({"alive": True})

    @routes.get("/readyz", summary="A request sent now would be generated")
    @routes.get("/health", summary="The same as /readyz")
    async def readyz() -> JSONResponse:
        ready, reason = orchestrator.readiness()
        return JSONResponse({"ready": ready, "reason": reason}, status_code=200 if ready else 503)

    @routes.get("/cluster", summary="The cluster now")
    async def cluster() -> JSONResponse:
        return JSONResponse(to_plain(orchestrator.snapshot()), headers={"cache-control": "no-store"})

    @routes.get("/cluster/events", summary="The cluster now and after every change, as server-sent events")
    async def cluster_events() -> StreamingResponse:
        return StreamingResponse(
            _events(orchestrator), media_type="text/event-stream", headers=_EVENT_HEADERS
        )

    @routes.get("/metrics", summary="Prometheus text")
    async def prometheus() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return routes


async def _events(orchestrator: MultiGPUOrchestrator) -> AsyncIterator[str]:
    """One event per snapshot. The next is made when the last has left: a slow reader skips some."""
    async for snapshot in orchestrator.watch():
        if snapshot is None:
            yield ": nothing new\n\n"
        else:
            text = json.dumps(to_plain(snapshot), separators=(",", ":"), allow_nan=False)
            yield f"id: {snapshot.revision}\ndata: {text}\n\n"

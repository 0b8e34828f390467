"""HTTP for operators: is it alive, can it serve, what is the cluster doing, what are the numbers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from ryzanstein.v1.operations_pb2 import ClusterSnapshot
from ryzanstein.wire import to_plain

from .activity import KEPT_S, WINDOW_S, Point
from .metrics import Metrics
from .openai.replies import EVENTS, FAILURES
from .orchestrator import REFRESH_S, MultiGPUOrchestrator

_UNCACHED = {"cache-control": "no-store"}
#: Proxies and browsers drop a connection on which nothing comes for long, and some of them hold back what does.
_EVENT_HEADERS = {**_UNCACHED, "x-accel-buffering": "no"}

#: Making snapshots for one reader takes at most this share of the time: with thousands of workers a pulse is slower.
_MOST_EFFORT = 0.02


class Alive(BaseModel):
    """Of /livez."""

    alive: bool


class Ready(BaseModel):
    """Of /readyz and /health; the reason is empty when it is."""

    ready: bool
    reason: str


class ActivityReply(BaseModel):
    """Of /cluster/activity."""

    unix_s: float
    window_s: float
    points: list[Point]


def _readiness() -> dict[str, Any]:
    return {"response_model": Ready, "responses": {503: {"model": Ready}}}


def operations_routes(orchestrator: MultiGPUOrchestrator, metrics: Metrics) -> APIRouter:
    """Routes to include into the coordinator's application."""
    routes = APIRouter(tags=["operations"], responses=FAILURES)

    @routes.get("/livez", summary="The process runs", response_model=Alive)
    async def livez() -> JSONResponse:
        return JSONResponse({"alive": True})

    @routes.get("/readyz", summary="A request sent now would be generated", **_readiness())
    @routes.get("/health", summary="The same as /readyz", **_readiness())
    async def readyz() -> JSONResponse:
        ready, reason = orchestrator.readiness()
        return JSONResponse({"ready": ready, "reason": reason}, status_code=200 if ready else 503)

    @routes.get("/cluster", summary="The cluster now", response_model=dict[str, Any])
    async def cluster() -> JSONResponse:
        return JSONResponse(to_plain(orchestrator.snapshot()), headers=_UNCACHED)

    @routes.get(
        "/cluster/events",
        summary="The cluster now and after every change, as server-sent events",
        response_class=Response,
        responses={200: {"content": EVENTS}},
    )
    async def cluster_events(
        pulse: Annotated[
            float | None,
            Query(
                ge=0.1,
                le=10.0,
                description="Seconds: so often also an event `pulse` with the ages of all heartbeats.",
            ),
        ] = None,
    ) -> StreamingResponse:
        return StreamingResponse(
            _events(orchestrator, pulse), media_type="text/event-stream", headers=_EVENT_HEADERS
        )

    @routes.get(
        "/cluster/activity",
        summary="Throughput, latency and load of the last seconds, one by one",
        response_model=ActivityReply,
    )
    async def cluster_activity(
        seconds: Annotated[int, Query(ge=1, le=KEPT_S, description="The newest so many.")] = 180,
    ) -> JSONResponse:
        points = orchestrator.activity.points(seconds)
        return JSONResponse(
            {"unix_s": time.time(), "window_s": WINDOW_S, "points": [asdict(point) for point in points]},
            headers=_UNCACHED,
        )

    @routes.get("/metrics", summary="Prometheus text", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return routes


async def _events(orchestrator: MultiGPUOrchestrator, pulse_s: float | None) -> AsyncIterator[str]:
    """One event per snapshot. The next is made when the last has left: a slow reader skips some.

    With `pulse_s`, whole snapshots come on change and about every second, and in between no more than how old the
    heartbeats are.
    """
    if pulse_s is None:
        async for snapshot in orchestrator.watch():
            yield ": nothing new\n\n" if snapshot is None else _whole(snapshot)
        return
    began = time.perf_counter()
    orchestrator.snapshot()
    effort_s = time.perf_counter() - began
    told: tuple[int, float] = (-1, 0.0)
    async for snapshot in orchestrator.watch(max(pulse_s, effort_s / _MOST_EFFORT)):
        now = time.monotonic()
        if snapshot is None:
            yield ": nothing new\n\n"
        elif snapshot.revision != told[0] or now - told[1] >= REFRESH_S - pulse_s / 2:
            told = snapshot.revision, now
            yield _whole(snapshot)
        else:
            ages = {worker.id: round(worker.heartbeat_age_s, 3) for worker in snapshot.workers}
            yield f"event: pulse\ndata: {_text({'heartbeat_age_s': ages})}\n\n"


def _whole(snapshot: ClusterSnapshot) -> str:
    return f"id: {snapshot.revision}\ndata: {_text(to_plain(snapshot))}\n\n"


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)

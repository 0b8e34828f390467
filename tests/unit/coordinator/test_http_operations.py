"""The pages for operators, over a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from google.protobuf.descriptor import Descriptor
from prometheus_client.parser import text_string_to_metric_families

from ryzanstein.v1 import cluster_pb2, operations_pb2
from ryzanstein_coordinator.cluster_metrics import ClusterCollector
from ryzanstein_coordinator.http_operations import operations_routes
from ryzanstein_coordinator.http_server import HttpServer, bind

from .cluster_builders import configuration
from .fake_workers import Cluster, running_cluster


@contextlib.asynccontextmanager
async def pages(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    cluster.metrics.registry.register(ClusterCollector(cluster.orchestrator))
    app.include_router(operations_routes(cluster.orchestrator, cluster.metrics))
    listener = bind("127.0.0.1", 0, flag="--http-port")
    server = HttpServer(app, listener)
    serving = asyncio.create_task(server.run_until_stopped())
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=base, timeout=20.0, trust_env=False) as client:
        try:
            yield client
        finally:
            server.stop()
            await serving


async def next_event(lines: AsyncIterator[str]) -> dict[str, Any]:
    async for line in lines:
        if line.startswith("data: "):
            data: dict[str, Any] = json.loads(line.removeprefix("data: "))
            return data
    raise AssertionError("the stream ended")


async def test_readiness_is_true_only_while_a_group_serves(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster, pages(cluster) as client:
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/health"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "waiting for workers" in answer.json()["reason"]
        await cluster.start("w0", "w1")
        epoch = await cluster.until_serving()
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (200, f"group g0 serves in epoch {epoch}")
        await cluster.workers["w1"].die()
        await cluster.until(lambda: not cluster.orchestrator.readiness()[0])
        answer = await client.get("/health")
        assert answer.status_code == 503
        assert "w1" in answer.json()["reason"]


async def test_the_cluster_page_has_every_field_of_the_contract(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster, pages(cluster) as client:
        await cluster.start("w0", "w1")
        await cluster.until_serving()
        page = (await client.get("/cluster")).json()
        assert set(page) == field_names(operations_pb2.ClusterSnapshot.DESCRIPTOR)
        assert set(page["workers"][0]) == field_names(operations_pb2.WorkerStatus.DESCRIPTOR)
        assert page["last_recovery"] is None
        assert page["groups"][0]["leader"] == "w0"
        assert [worker["rank"] for worker in page["workers"]] == [0, 1]
        assert page["workers"][0]["device_name"] == "a processor"
        assert 0 <= page["workers"][0]["heartbeat_age_s"] < 5
        assert page["requests"] == {"running": 2, "waiting": 1}


async def test_events_bring_a_snapshot_at_once_and_after_each_change(tmp_path: Path) -> None:
    async with (
        running_cluster(configuration(spares=0), tmp_path) as cluster,
        pages(cluster) as client,
        client.stream("GET", "/cluster/events") as stream,
    ):
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = stream.aiter_lines()
        snapshot = await next_event(lines)
        assert (snapshot["state"], snapshot["workers"]) == ("waiting", [])
        await cluster.start("w0", "w1")
        revisions = [snapshot["revision"]]
        while snapshot["state"] != "serving":
            snapshot = await next_event(lines)
            revisions.append(snapshot["revision"])
        assert revisions == sorted(revisions)


async def test_a_reader_that_comes_back_late_gets_the_newest_snapshot_only(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster:
        watcher = cluster.orchestrator.watch()
        first = await anext(watcher)
        await cluster.start("w0", "w1")
        await cluster.until_serving()
        latest = await anext(watcher)
        assert first is not None
        assert latest is not None
        assert latest.revision > first.revision + 1
        assert latest.state == "serving"


async def test_metrics_are_prometheus_text_with_every_family_before_anything_happened(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster, pages(cluster) as client:
        answer = await client.get("/metrics")
        families = {family.name for family in text_string_to_metric_families(answer.text)}
        assert families >= {f"ryzanstein_{name}" for name in FAMILIES}


async def test_metrics_follow_the_cluster(tmp_path: Path) -> None:
    async with running_cluster(configuration(), tmp_path) as cluster, pages(cluster) as client:
        await cluster.start("w0", "w1", "w2")
        epoch = await cluster.until_serving()
        await cluster.workers["w1"].die()
        await cluster.until(lambda: cluster.orchestrator.state.groups[0].epoch > epoch)
        epoch = await cluster.until_serving()
        text = (await client.get("/metrics")).text
        samples = {
            (
                sample.name.removeprefix("ryzanstein_"),
                *(label for _, label in sorted(sample.labels.items())),
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert samples["group_epoch", "g0"] == epoch
        assert samples["group_state", "g0", "serving"] == 1
        assert samples["group_state", "g0", "recovering"] == 0
        assert samples["worker_state", "lost", "w1"] == 1
        assert samples["recoveries_total", "process"] == 1
        assert samples["recovery_duration_seconds_count", "reformed"] == 1
        assert samples["requests_running",] == 2
        assert samples["memory_bytes", "weights", "w0"] == 5 * 1024**2
        assert samples["communication_ratio", "0"] == 0.25
        assert 0 <= samples["heartbeat_age_seconds", "w0"] < 5


async def test_what_a_gpu_tells_of_itself_is_shown_and_measured(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster, pages(cluster) as client:
        await cluster.start("w0", "w1")
        cluster.workers["w1"].health = cluster_pb2.DeviceHealth(
            utilization_ratio=0.87, temperature_celsius=61.0, ecc_errors=2
        )
        await cluster.until_serving()
        await cluster.until(lambda: cluster.orchestrator.state.telemetry["w1"].ecc_errors == 2)
        told = {
            worker["id"]: worker["device_health"]
            for worker in (await client.get("/cluster")).json()["workers"]
        }
        assert told["w0"]["temperature_celsius"] is None
        assert told["w1"] == {
            "failure": "", "utilization_ratio": 0.87, "temperature_celsius": 61.0, "ecc_errors": 2
        }  # fmt: skip
        text = (await client.get("/metrics")).text
        for line in (
            'ryzanstein_gpu_utilization_ratio{worker="w1"} 0.87',
            'ryzanstein_gpu_temperature_celsius{worker="w1"} 61.0',
            'ryzanstein_gpu_ecc_errors_total{worker="w1"} 2.0',
            "ryzanstein_ready 1.0",
        ):
            assert line in text
        assert 'ryzanstein_gpu_utilization_ratio{worker="w0"}' not in text
        assert re.search(
            r'ryzanstein_communication_seconds_total\{operation="all_reduce",rank="1"\} 0\.\d', text
        )


async def test_between_snapshots_a_pulse_brings_the_ages_of_the_heartbeats(tmp_path: Path) -> None:
    async with running_cluster(configuration(spares=0), tmp_path) as cluster, pages(cluster) as client:
        await cluster.start("w0", "w1")
        await cluster.until_serving()
        async with client.stream("GET", "/cluster/events?pulse=0.1") as stream:
            events = [line async for line in first_lines(stream.aiter_lines(), 12) if line]
        kinds = [
            "pulse" if line == "event: pulse" else "whole" for line in events if line[:3] in ("eve", "id:")
        ]
        assert kinds[0] == "whole"
        assert "pulse" in kinds
        pulses = [json.loads(line[6:]) for line in events if line.startswith('data: {"heartbeat_age_s"')]
        assert all(set(pulse["heartbeat_age_s"]) == {"w0", "w1"} for pulse in pulses)
        assert (
            await client.get("/cluster/events?pulse=0")
        ).status_code == 422  # the application makes it 400


async def first_lines(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    """So many lines of a stream that has no end."""
    async for line in lines:
        yield line
        count -= 1
        if not count:
            return


async def test_the_history_tells_what_ended_an_epoch_and_the_activity_what_came_of_it(tmp_path: Path) -> None:
    async with running_cluster(configuration(), tmp_path) as cluster, pages(cluster) as client:
        await cluster.start("w0", "w1", "w2")
        epoch = await cluster.until_serving()
        await cluster.workers["w1"].die()
        await cluster.until(lambda: cluster.orchestrator.state.groups[0].epoch > epoch)
        await cluster.until_serving()
        page = (await client.get("/cluster")).json()
        newest, first = page["history"]
        assert (first["epoch"], first["recovery"], first["members"]) == (epoch, None, ["w0", "w1"])
        assert newest["recovery"]["culprit"]["worker_id"] == "w1"
        assert (
            first["began_unix_s"] <= first["served_unix_s"] <= first["ended_unix_s"] <= newest["began_unix_s"]
        )
        assert newest["ended_unix_s"] is None
        assert page["readiness"]["ready"]
        assert page["traffic"]["window_s"] == 5
        activity = (await client.get("/cluster/activity?seconds=30")).json()
        assert all(set(point) <= set(page["traffic"]) for point in activity["points"])


def field_names(message: Descriptor) -> set[str]:
    return {field.name for field in message.fields}


#: From the contract, and three that alerts need; prometheus_client's parser takes `_total` off the names of counters.
FAMILIES = (
    "ready",
    "spares_wanted",
    "state_store_errors",
    "requests_running",
    "requests_waiting",
    "requests",
    "request_queue_seconds",
    "request_duration_seconds",
    "prompt_tokens",
    "generated_tokens",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "kv_cache_usage_ratio",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "preemptions",
    "step_duration_seconds",
    "communication_seconds",
    "communication_bytes",
    "communication_operations",
    "communication_ratio",
    "group_epoch",
    "group_state",
    "worker_state",
    "heartbeat_age_seconds",
    "recoveries",
    "recovery_duration_seconds",
    "memory_bytes",
    "gpu_utilization_ratio",
    "gpu_temperature_celsius",
    "gpu_ecc_errors",
)

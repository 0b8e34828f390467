"""Metrics that say what is so now: read from the cluster's state when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .group_record import GroupState
from .orchestrator import MultiGPUOrchestrator
from .state import ClusterState, group_state, worker_state
from .worker_record import WorkerState


class ClusterCollector(Collector):
    """Register it with `Metrics.registry`."""

    def __init__(self, orchestrator: MultiGPUOrchestrator) -> None:
        self._orchestrator = orchestrator

    def describe(self) -> Iterator[Metric]:
        """The same families without samples: registering must not read the state."""
        yield from families().values()

    def collect(self) -> Iterator[Metric]:
        """All families, also those that have no sample now."""
        state, now_s = self._orchestrator.state, self._orchestrator.now_s
        found = families()
        found["ready"].add_metric([], float(self._orchestrator.readiness()[0]))
        found["spares_wanted"].add_metric([], self._orchestrator.config.spares)
        running, waiting = self._orchestrator.counts()
        found["requests_running"].add_metric([], running)
        found["requests_waiting"].add_metric([], waiting)
        _groups(state, found)
        _workers(state, now_s, found)
        yield from found.values()


def families() -> dict[str, GaugeMetricFamily]:
    """By name without prefix, without samples."""
    gauges = {
        "ready": ("1 while a request sent now would be generated; the truth of /readyz.", []),
        "spares_wanted": ("Workers beyond the ranks that the cluster is meant to have.", []),
        "requests_running": ("Requests that a group computes.", []),
        "requests_waiting": ("Requests that wait for a place.", []),
        "communication_ratio": ("Share of the last steps that was spent in collectives.", ["rank"]),
        "group_epoch": ("Epoch of the group.", ["group"]),
        "group_state": ("1 for the state that the group is in.", ["group", "state"]),
        "worker_state": ("1 for the state that the worker is in.", ["worker", "state"]),
        "heartbeat_age_seconds": ("Since the worker was heard of.", ["worker"]),
        "memory_bytes": ("Of the worker's device, by what it is for.", ["worker", "component"]),
        "gpu_utilization_ratio": ("Share of time in which the GPU computed.", ["worker"]),
        "gpu_temperature_celsius": ("Of the GPU.", ["worker"]),
    }
    empty: dict[str, GaugeMetricFamily] = {
        name: GaugeMetricFamily(f"ryzanstein_{name}", text, labels=labels)
        for name, (text, labels) in gauges.items()
    }
    empty["gpu_ecc_errors_total"] = CounterMetricFamily(  # type: ignore[assignment]
        "ryzanstein_gpu_ecc_errors", "Uncorrected memory errors of the GPU.", labels=["worker"]
    )
    return empty


def _groups(state: ClusterState, families: dict[str, GaugeMetricFamily]) -> None:
    for group in state.groups:
        families["group_epoch"].add_metric([group.group_id], group.epoch)
        shown = group_state(state, group)
        for possible in GroupState:
            families["group_state"].add_metric([group.group_id, possible.value], float(possible is shown))


def _workers(state: ClusterState, now_s: float, families: dict[str, GaugeMetricFamily]) -> None:
    for worker_id, worker in state.workers.items():
        shown = worker_state(worker, state.group(worker.group or ""))
        for possible in WorkerState:
            families["worker_state"].add_metric([worker_id, possible.value], float(possible is shown))
        report = state.telemetry.get(worker_id)
        if report is None:
            continue
        families["heartbeat_age_seconds"].add_metric([worker_id], max(0.0, now_s - report.heard_at_s))
        for family, number in (
            ("gpu_utilization_ratio", report.utilization_ratio),
            ("gpu_temperature_celsius", report.temperature_celsius),
            ("gpu_ecc_errors_total", report.ecc_errors),
        ):
            if number is not None:
                families[family].add_metric([worker_id], number)
        # Ranks of several groups would be one series: the first group speaks for them.
        if worker.rank is not None and worker.group == state.groups[0].group_id:
            families["communication_ratio"].add_metric([str(worker.rank)], report.communication_ratio)
        for component, count in (
            ("total", report.total_bytes),
            ("weights", report.weights_bytes),
            ("kv_cache", report.kv_cache_bytes),
            ("used", report.used_bytes),
        ):
            families["memory_bytes"].add_metric([worker_id, component], count)

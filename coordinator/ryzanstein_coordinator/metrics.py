"""Every metric of the coordinator, present from the start. Names, labels and units are public.

What happened is counted here (`Metrics`); what is so now is read from the cluster's state when Prometheus
asks (`cluster_metrics`), so that no series outlives its worker and no age is stale.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from ryzanstein.v1.shard_worker_pb2 import SchedulerStats

from .activity import Activity
from .group_record import Cause, Phase, Recovery
from .observers import OUTCOMES
from .state import ClusterState
from .worker_record import Telemetry

#: From 1 ms on, as all histograms. Seconds.
_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DURATION_BUCKETS = (*_LATENCY_BUCKETS, 120.0, 300.0, 600.0)
_RECOVERY_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: Moments of a recovery, as in /cluster's last_recovery.
RECOVERY_PHASES = ("detected", "fenced", "reformed", "first_token")

#: What workers may name; whatever else they name is one label, not as many as they like.
OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "receive", "barrier")
OTHER_OPERATIONS = "other"
STORES = ("epochs", "requests")


@dataclass(slots=True)
class _SchedulerTotals:
    """What a leader's scheduler has counted; a new epoch's begins at 0 again."""

    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    blocks_used: int = 0
    blocks_total: int = 0


class Metrics:
    """Counts. Implements `observers.RequestMetrics` and `control_loop.ClusterObserver`."""

    def __init__(
        self, registry: CollectorRegistry | None = None, *, activity: Activity | None = None
    ) -> None:
        """`activity`: told the same, for those who look now."""
        self.activity = Activity() if activity is None else activity
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter and histogram, which nothing asks for
        # A registry of our own: two coordinators in one test don't share counters.
        self.registry = CollectorRegistry() if registry is None else registry
        counter, histogram = self._counter, self._histogram
        self._requests = counter("requests", "Requests that ended, by how.", "outcome")
        self._queue_s = histogram("request_queue_seconds", "Admission to the first submission to a group.")
        self._duration_s = histogram(
            "request_duration_seconds", "Admission to the end.", buckets=_DURATION_BUCKETS
        )
        self._prompt_tokens = counter("prompt_tokens", "Tokens of admitted prompts.")
        self._generated_tokens = counter("generated_tokens", "Tokens generated; replays don't count.")
        self._first_token_s = histogram("time_to_first_token_seconds", "Admission to the first token.")
        self._inter_token_s = histogram("inter_token_latency_seconds", "From one token to the next.")
        self._kv_usage = Gauge(
            "ryzanstein_kv_cache_usage_ratio",
            "Share of the KV blocks of all groups that is in use.",
            registry=self.registry,
        )
        self._prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = counter("preemptions", "Sequences that lost their blocks and began again.")
        self._step_s = histogram(
            "step_duration_seconds",
            "Rank 0: every step that brought tokens. Others: mean of the last steps, at every heartbeat under load.",
            "rank",
        )
        self._communication_s = counter(
            "communication_seconds",
            "Time spent in collectives, waiting for slower ranks included.",
            "rank",
            "operation",
        )
        self._communication_bytes = counter(
            "communication_bytes",
            "Bytes of the tensors that were handed to collectives.",
            "rank",
            "operation",
        )
        self._communication_operations = counter(
            "communication_operations",
            "Calls of collectives; seconds per operation is their mean latency.",
            "rank",
            "operation",
        )
        self._recoveries = counter(
            "recoveries", "Groups that serve again after a fault or a planned change, by its cause.", "cause"
        )
        self._recovery_s = histogram(
            "recovery_duration_seconds",
            "From the first sign of a fault to each moment of its recovery.",
            "phase",
            buckets=_RECOVERY_BUCKETS,
        )
        self._store_errors = counter(
            "state_store_errors", "Writes to the state directory that failed.", "store"
        )
        self._totals: dict[str, _SchedulerTotals] = {}
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        for cause in Cause:
            self._recoveries.labels(cause.value)
        for phase in RECOVERY_PHASES:
            self._recovery_s.labels(phase)
        for store in STORES:
            self._store_errors.labels(store)

    def exposition(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self.registry)

    def store_failed(self, store: str) -> None:
        """One of STORES could not be written. Callable from any thread."""
        self._store_errors.labels(store).inc()

    # --- observers.RequestMetrics

    def request_ended(self, outcome: str, duration_s: float) -> None:
        self._requests.labels(outcome).inc()
        self._duration_s.observe(duration_s)
        self.activity.request_ended(outcome)

    def request_queued(self, seconds: float) -> None:
        self._queue_s.observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first_token_s.observe(seconds)
        self.activity.first_token(seconds)

    def inter_token_latency(self, seconds: float, count: int) -> None:
        for _ in range(count):
            self._inter_token_s.observe(seconds)
        self.activity.inter_token_latency(seconds, count)

    def prompt_tokens(self, count: int) -> None:
        self._prompt_tokens.inc(count)
        self.activity.prompt_tokens(count)

    def generated_tokens(self, count: int) -> None:
        self._generated_tokens.inc(count)
        self.activity.generated_tokens(count)

    def step(self, group_id: str, stats: SchedulerStats, step_duration_s: float) -> None:
        if step_duration_s > 0.0:
            self._step_s.labels("0").observe(step_duration_s)
        totals = self._totals.setdefault(group_id, _SchedulerTotals())
        self._preemptions.inc(_growth(totals.preemptions, stats.preemptions_total))
        self._prefix_queries.inc(_growth(totals.prefix_queries, stats.prefix_queries_total))
        self._prefix_hits.inc(_growth(totals.prefix_hits, stats.prefix_hits_total))
        totals.preemptions = stats.preemptions_total
        totals.prefix_queries = stats.prefix_queries_total
        totals.prefix_hits = stats.prefix_hits_total
        totals.blocks_used, totals.blocks_total = stats.blocks_used, stats.blocks_total
        self._set_usage()

    def _set_usage(self) -> None:
        blocks = sum(other.blocks_total for other in self._totals.values())
        used = sum(other.blocks_used for other in self._totals.values())
        usage = used / blocks if blocks else 0.0
        self._kv_usage.set(usage)
        self.activity.kv_cache_usage(usage)

    # --- control_loop.ClusterObserver

    def heartbeat(self, before: ClusterState, after: ClusterState, worker_id: str) -> None:
        worker = after.workers.get(worker_id)
        old, new = before.telemetry.get(worker_id), after.telemetry.get(worker_id)
        if worker is None or worker.rank is None or new is None or not new.epoch:
            return
        same = old is not None and old.epoch == new.epoch
        # A new epoch's counts begin at 0.
        known = old if old is not None and same else Telemetry(heard_at_s=new.heard_at_s)
        rank = str(worker.rank)
        for counter, totals, counted in (
            (self._communication_s, new.communication_s, known.communication_s),
            (self._communication_bytes, new.communication_bytes, known.communication_bytes),
            (self._communication_operations, new.communication_operations, known.communication_operations),
        ):
            for name, total in totals.items():
                operation = name if name in OPERATIONS else OTHER_OPERATIONS
                counter.labels(rank, operation).inc(max(0.0, total - counted.get(name, 0)))
        # An idle group steps too, to stay alive: how long that takes says nothing about work.
        worked = old is not None and same and new.step > old.step and self.activity.counts()[0] > 0
        if worker.rank != 0 and worked:
            self._step_s.labels(rank).observe(new.step_duration_s)

    def changed(self, before: ClusterState, after: ClusterState) -> None:
        if before.groups is after.groups:
            return
        for old, new in zip(before.groups, after.groups, strict=True):
            if old.phase is Phase.SERVING and new.phase is not Phase.SERVING:
                self._totals.pop(old.group_id, None)  # its schedulers are gone, with all that they held
                self._set_usage()
            if new.commit_failed and not old.commit_failed:
                self.store_failed("epochs")
            if new.recovery is not None and new.recovery != old.recovery:
                same = old.recovery is not None and old.recovery.detected_at_s == new.recovery.detected_at_s
                self._recovery(old.recovery if same else None, new.recovery)

    def _recovery(self, old: Recovery | None, new: Recovery) -> None:
        if new.reformed_at_s is not None and (old is None or old.reformed_at_s is None):
            self._recoveries.labels(new.cause.value).inc()  # what it was about may be known only by now
        for phase in RECOVERY_PHASES:
            moment_s = getattr(new, f"{phase}_at_s")
            if moment_s is not None and (old is None or getattr(old, f"{phase}_at_s") is None):
                self._recovery_s.labels(phase).observe(max(0.0, moment_s - new.seen_at_s))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ryzanstein_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = _LATENCY_BUCKETS
    ) -> Histogram:
        return Histogram(f"ryzanstein_{name}", text, labels, buckets=buckets, registry=self.registry)


def _growth(before: int, now: int) -> int:
    return now - before if now >= before else now

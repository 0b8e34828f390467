"""What the counters count."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from ryzanstein.v1.shard_worker_pb2 import SchedulerStats
from ryzanstein_coordinator.group_record import Cause, GroupRecord, Phase, Recovery
from ryzanstein_coordinator.metrics import Metrics
from ryzanstein_coordinator.state import ClusterState
from ryzanstein_coordinator.worker_record import Telemetry

from .cluster_builders import worker


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"ryzanstein_{name}", labels)
    assert found is not None, f"no sample {name} {labels}"
    return found


def test_histograms_begin_at_a_millisecond() -> None:
    text = Metrics().exposition().decode()
    assert 'ryzanstein_request_queue_seconds_bucket{le="0.001"} 0.0' in text
    assert 'ryzanstein_recovery_duration_seconds_bucket{le="0.001",phase="fenced"} 0.0' in text
    assert "_created" not in text


def test_requests_are_counted_by_how_they_ended() -> None:
    metrics = Metrics()
    metrics.request_ended("stop", 1.5)
    metrics.request_ended("stop", 2.5)
    assert value(metrics, "requests_total", outcome="stop") == 2
    assert value(metrics, "requests_total", outcome="length") == 0
    assert value(metrics, "request_duration_seconds_sum") == 4.0


def test_tokens_and_latencies_are_counted_per_stream() -> None:
    metrics = Metrics()
    metrics.request_queued(0.1)
    metrics.prompt_tokens(7)
    metrics.first_token(0.2)
    metrics.generated_tokens(3)
    metrics.inter_token_latency(0.02, 3)
    assert value(metrics, "request_queue_seconds_count") == 1
    assert value(metrics, "prompt_tokens_total") == 7
    assert value(metrics, "time_to_first_token_seconds_sum") == 0.2
    assert value(metrics, "generated_tokens_total") == 3
    assert value(metrics, "inter_token_latency_seconds_count") == 3


def test_a_schedulers_totals_begin_again_with_its_epoch_and_ours_go_on() -> None:
    metrics = Metrics()
    first = SchedulerStats(
        preemptions_total=4, prefix_queries_total=10, prefix_hits_total=6, blocks_used=1, blocks_total=4
    )
    metrics.step("g0", first, 0.01)
    metrics.step("g0", SchedulerStats(preemptions_total=1, prefix_queries_total=2, blocks_total=4), 0.01)
    assert value(metrics, "preemptions_total") == 5
    assert value(metrics, "prefix_cache_queries_total") == 12
    assert value(metrics, "prefix_cache_hits_total") == 6
    assert value(metrics, "step_duration_seconds_count", rank="0") == 2
    metrics.step("g1", SchedulerStats(blocks_used=3, blocks_total=4), 0.01)
    assert value(metrics, "kv_cache_usage_ratio") == pytest.approx(3 / 8)


def test_a_group_that_serves_no_more_holds_no_cache_and_its_next_counts_are_all_new() -> None:
    metrics = Metrics()
    metrics.step("g0", SchedulerStats(prefix_queries_total=10, blocks_used=3, blocks_total=4), 0.01)
    serving = GroupRecord(group_id="g0", size=1, phase=Phase.SERVING)
    lost = replace(serving, phase=Phase.FENCING)
    metrics.changed(ClusterState(groups=(serving,)), ClusterState(groups=(lost,)))
    assert value(metrics, "kv_cache_usage_ratio") == 0
    metrics.step("g0", SchedulerStats(prefix_queries_total=50, blocks_total=4), 0.01)
    assert value(metrics, "prefix_cache_queries_total") == 60


def test_heartbeats_add_up_the_time_in_each_collective() -> None:
    metrics = Metrics()
    metrics.activity.counts = lambda: (1, 0)
    workers = {"w1": worker("w1", group="g0", rank=1)}
    nothing = ClusterState(workers=workers)
    report = Telemetry(
        heard_at_s=1.0,
        epoch=3,
        step=10,
        step_duration_s=0.02,
        communication_s={"all_reduce": 1.0, "barrier": 0.5},
    )
    before = ClusterState(workers=workers, telemetry={"w1": report})
    later = replace(report, step=30, communication_s={"all_reduce": 1.25, "barrier": 0.5, "telepathy": 2.0})
    after = ClusterState(workers=workers, telemetry={"w1": later})
    metrics.heartbeat(nothing, before, "w1")
    metrics.heartbeat(before, after, "w1")
    metrics.heartbeat(after, after, "w1")  # no step in between
    assert value(metrics, "communication_seconds_total", rank="1", operation="all_reduce") == pytest.approx(
        1.25
    )
    assert value(metrics, "communication_seconds_total", rank="1", operation="barrier") == pytest.approx(0.5)
    assert value(metrics, "communication_seconds_total", rank="1", operation="other") == pytest.approx(2.0)
    assert value(metrics, "step_duration_seconds_count", rank="1") == 1
    formed_again = replace(report, epoch=4, step=1, communication_s={"all_reduce": 0.1})
    metrics.heartbeat(after, ClusterState(workers=workers, telemetry={"w1": formed_again}), "w1")
    assert value(metrics, "communication_seconds_total", rank="1", operation="all_reduce") == pytest.approx(
        1.35
    )


def test_heartbeats_add_up_bytes_and_calls_of_each_collective() -> None:
    metrics = Metrics()
    workers = {"w1": worker("w1", group="g0", rank=1)}
    told = Telemetry(
        heard_at_s=1.0,
        epoch=3,
        communication_bytes={"all_reduce": 4096, "barrier": 0},
        communication_operations={"all_reduce": 4, "barrier": 1},
    )
    more = replace(told, communication_bytes={"all_reduce": 6144}, communication_operations={"all_reduce": 6})
    new_epoch = replace(
        told, epoch=4, communication_bytes={"all_reduce": 512}, communication_operations={"all_reduce": 1}
    )
    reports = [ClusterState(workers=workers, telemetry={"w1": each}) for each in (told, more, new_epoch)]
    for before, after in zip([ClusterState(workers=workers), *reports], reports, strict=False):
        metrics.heartbeat(before, after, "w1")
    assert value(metrics, "communication_bytes_total", rank="1", operation="all_reduce") == 6144 + 512
    assert value(metrics, "communication_operations_total", rank="1", operation="all_reduce") == 6 + 1
    assert value(metrics, "communication_operations_total", rank="1", operation="barrier") == 1


def test_steps_that_only_keep_an_idle_group_alive_are_not_observed() -> None:
    metrics = Metrics()
    metrics.activity.counts = lambda: (0, 0)
    workers = {"w1": worker("w1", group="g0", rank=1)}
    report = Telemetry(heard_at_s=1.0, epoch=3, step=10, step_duration_s=0.02)
    before = ClusterState(workers=workers, telemetry={"w1": report})
    metrics.heartbeat(before, ClusterState(workers=workers, telemetry={"w1": replace(report, step=11)}), "w1")
    assert metrics.registry.get_sample_value("ryzanstein_step_duration_seconds_count", {"rank": "1"}) is None


def test_writes_to_the_state_directory_that_fail_are_counted() -> None:
    metrics = Metrics()
    forming = GroupRecord(group_id="g0", size=1)
    failed = replace(forming, commit_failed=True)
    metrics.changed(ClusterState(groups=(forming,)), ClusterState(groups=(failed,)))
    metrics.changed(ClusterState(groups=(failed,)), ClusterState(groups=(replace(failed, failures=1),)))
    metrics.store_failed("requests")
    assert value(metrics, "state_store_errors_total", store="epochs") == 1
    assert value(metrics, "state_store_errors_total", store="requests") == 1


def test_each_moment_of_a_recovery_is_observed_once() -> None:
    metrics = Metrics()
    recovery = Recovery(
        epoch=4, cause=Cause.LEASE, culprit=None, reason="", seen_at_s=10.0, detected_at_s=10.4
    )
    before_it = GroupRecord(group_id="g0", size=2)
    fenced = replace(recovery, fenced_at_s=10.5)
    reformed = replace(fenced, reformed_at_s=11.0, cause=Cause.PROCESS)
    for before, after in itertools.pairwise((None, recovery, fenced, reformed)):
        old, new = (replace(before_it, recovery=moment) for moment in (before, after))
        metrics.changed(ClusterState(groups=(old,)), ClusterState(groups=(new,)))
    assert value(metrics, "recoveries_total", cause="process") == 1
    assert value(metrics, "recoveries_total", cause="lease") == 0
    assert value(metrics, "recovery_duration_seconds_sum", phase="detected") == pytest.approx(0.4)
    assert value(metrics, "recovery_duration_seconds_count", phase="fenced") == 1
    assert value(metrics, "recovery_duration_seconds_sum", phase="reformed") == pytest.approx(1.0)
    assert value(metrics, "recovery_duration_seconds_count", phase="first_token") == 0

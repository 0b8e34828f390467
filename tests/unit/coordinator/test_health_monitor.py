"""Who is well, and who is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from ryzanstein_coordinator.group_record import Cause, EngineBounds, GroupRecord, Member, Phase
from ryzanstein_coordinator.health_monitor import Fault, HealthMonitor
from ryzanstein_coordinator.leader_stream import LeaderStream
from ryzanstein_coordinator.standstills import Hearing
from ryzanstein_coordinator.state import ClusterState
from ryzanstein_coordinator.worker_record import FaultReport, Telemetry, WorkerRecord

from .cluster_builders import configuration, worker

MONITOR = HealthMonitor(configuration(lease_ttl_s=1.0, progress_deadline_s=10.0))
GROUP = GroupRecord(
    group_id="g0",
    size=2,
    phase=Phase.SERVING,
    epoch=7,
    members=(Member(0, "w0", "w0-1"), Member(1, "w1", "w1-1")),
    serving_since_s=0.0,
    stream=LeaderStream(alive_since_s=0.0),
)
WORKERS = {f"w{rank}": worker(f"w{rank}", group="g0", rank=rank) for rank in (0, 1)}


def report(now_s: float = 100.0, **changes: object) -> Telemetry:
    fields: dict[str, object] = {"heard_at_s": now_s, "epoch": 7, "collective": "all_reduce"}
    return Telemetry(**{**fields, **changes})  # type: ignore[arg-type]


def fault(reports: Mapping[str, Telemetry], group: GroupRecord = GROUP, now_s: float = 100.0) -> Fault | None:
    return MONITOR.fault(now_s, group, WORKERS, reports, Hearing())


@pytest.mark.parametrize(
    ("silent_s", "suspect", "expired"), [(0.2, False, False), (0.7, True, False), (1.01, True, True)]
)
def test_silence_makes_a_suspect_and_then_ends_the_lease(
    silent_s: float, suspect: bool, expired: bool
) -> None:
    lease = MONITOR.lease(100.0 + silent_s, WORKERS["w0"], report(100.0), Hearing())
    assert (lease.suspect, lease.expired) == (suspect, expired)


def test_a_lease_begins_with_the_registration() -> None:
    assert MONITOR.lease(0.5, WORKERS["w0"], None, Hearing()).age_s == 0.5
    assert MONITOR.lease(1.5, WORKERS["w0"], None, Hearing()).expired


def test_silence_while_the_coordinator_stood_still_proves_nothing() -> None:
    assert not MONITOR.lease(160.0, WORKERS["w0"], report(100.0), Hearing(159.9)).suspect
    assert MONITOR.stood_still(160.0, last_tick_s=100.0)
    assert not MONITOR.stood_still(100.05, last_tick_s=100.0)


def test_a_healthy_group_has_no_fault() -> None:
    assert fault({"w0": report(), "w1": report()}) is None


@pytest.mark.parametrize(
    ("kind", "peer", "cause", "culprit"),
    [
        ("collective", 0, Cause.COLLECTIVE, "w0"),
        ("collective", None, Cause.COLLECTIVE, None),
        ("collective", 9, Cause.COLLECTIVE, None),
        ("process", 0, Cause.PROCESS, "w0"),
        ("process", None, Cause.COLLECTIVE, None),
        ("device", None, Cause.DEVICE, "w1"),
        ("memory", None, Cause.MEMORY, "w1"),
        ("engine", 0, Cause.ENGINE, "w1"),
        ("something new", None, Cause.ENGINE, "w1"),
    ],
)
def test_a_report_blames_the_peer_or_the_reporter(
    kind: str, peer: int | None, cause: Cause, culprit: str | None
) -> None:
    seen = FaultReport(kind=kind, message="it broke", epoch=7, peer_rank=peer)
    found = fault({"w0": report(), "w1": report(fault=seen)})
    assert found is not None
    assert (found.cause, found.culprit) == (cause, culprit)
    assert found.reason == "w1 (rank 1) reports: it broke"


def test_a_fault_of_an_earlier_epoch_is_old_news() -> None:
    seen = FaultReport(kind="engine", message="", epoch=6)
    assert fault({"w0": report(), "w1": report(fault=seen)}) is None


def test_the_rank_that_the_others_wait_for_is_named_as_stuck() -> None:
    reports = {
        "w0": report(progress_age_s=12.0, collective_sequence=41),
        "w1": report(progress_age_s=12.0, collective_sequence=40),
    }
    found = fault(reports)
    assert found is not None
    assert (found.cause, found.culprit) == (Cause.STUCK, "w1")
    assert found.reason == "no step was finished for 12.0 s: w1 stands at all_reduce 40"
    assert found.seen_at_s == 88.0


def test_nobody_is_blamed_when_all_ranks_stand_at_the_same_place() -> None:
    stuck = report(progress_age_s=12.0, collective_sequence=41)
    found = fault({"w0": stuck, "w1": stuck})
    assert found is not None
    assert found.culprit is None
    assert "all ranks stand at all_reduce 41" in found.reason


def test_a_model_with_long_steps_gets_a_longer_deadline() -> None:
    limits = EngineBounds(
        block_size=16,
        num_blocks=2,
        max_num_seqs=1,
        max_batched_tokens=512,
        max_model_len=16,
        slowest_step_s=60.0,
    )
    group = replace(GROUP, limits=limits)
    slow = report(progress_age_s=59.0)
    assert fault({"w0": slow, "w1": slow}, group) is None
    assert ready(group=group, w0=slow, w1=slow)[0]
    stuck = report(progress_age_s=61.0)
    assert fault({"w0": stuck, "w1": stuck}, group) is not None


def test_a_slow_step_within_the_deadline_is_no_fault() -> None:
    assert fault({"w0": report(progress_age_s=9.9), "w1": report(progress_age_s=9.9)}) is None


def test_a_member_that_left_the_epoch_without_a_word_is_found() -> None:
    found = fault({"w0": report(), "w1": report(epoch=0)})
    assert found is not None
    assert (found.cause, found.culprit) == (Cause.ENGINE, "w1")


def test_a_beat_from_before_the_group_stood_is_no_sign_of_leaving() -> None:
    just_formed = replace(GROUP, serving_since_s=99.9)
    assert fault({"w0": report(), "w1": report(epoch=0)}, just_formed) is None


def ready(
    *,
    group: GroupRecord = GROUP,
    draining: bool = False,
    now_s: float = 100.0,
    w0: Telemetry | None = None,
    w1: Telemetry | None = None,
) -> tuple[bool, str]:
    telemetry = {"w0": w0 or report(), "w1": w1 or report()}
    workers: Mapping[str, WorkerRecord] = WORKERS
    state = ClusterState(
        workers=workers, telemetry=telemetry, groups=(group,), draining=draining, last_tick_s=now_s
    )
    return MONITOR.readiness(now_s, state)


def test_a_group_that_serves_makes_the_cluster_ready() -> None:
    assert ready() == (True, "group g0 serves in epoch 7")


def test_one_serving_group_of_two_is_enough() -> None:
    waiting = GroupRecord(group_id="g1", size=2)
    telemetry = {"w0": report(), "w1": report()}
    state = ClusterState(workers=WORKERS, telemetry=telemetry, groups=(waiting, GROUP), last_tick_s=100.0)
    assert MONITOR.readiness(100.0, state)[0]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ({"draining": True}, "the server is stopping"),
        ({"group": GroupRecord(group_id="g0", size=2)}, "group g0: waiting: waiting for workers"),
        ({"now_s": 101.5}, "was not heard of for a lease"),
        ({"w1": report(progress_age_s=11.0)}, "w1 (rank 1) finished no step for 11 s"),
    ],
)
def test_the_reason_for_not_being_ready_is_given(case: dict[str, object], reason: str) -> None:
    is_ready, text = ready(**case)  # type: ignore[arg-type]
    assert not is_ready
    assert reason in text


def with_stream(stream: LeaderStream) -> GroupRecord:
    return replace(GROUP, stream=stream)


def test_a_leader_that_takes_no_requests_is_not_ready_until_its_stream_lasts() -> None:
    group = with_stream(LeaderStream(silent_since_s=99.0, breaks=3))
    assert ready(group=group) == (False, "group g0: the leader does not take requests")
    taken = replace(group, stream=group.stream.alive(100.0))
    assert not ready(group=taken)[0]
    assert ready(group=taken, now_s=102.0, w0=report(102.0), w1=report(102.0))[0]


def test_a_stream_that_is_being_opened_is_no_reason_not_to_be_ready_for_a_moment() -> None:
    group = with_stream(LeaderStream(silent_since_s=99.5))
    assert ready(group=group)[0]
    silent = with_stream(LeaderStream(silent_since_s=99.3))
    assert ready(group=silent) == (False, "group g0: the leader does not take requests")


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (LeaderStream(silent_since_s=99.9, breaks=5), "its stream broke 5 times in a row"),
        (LeaderStream(silent_since_s=97.9, breaks=1), "it has not taken a stream for 2.1 s"),
    ],
)
def test_a_leader_that_never_takes_requests_is_a_fault(stream: LeaderStream, why: str) -> None:
    found = fault({"w0": report(), "w1": report()}, with_stream(stream))
    assert found is not None
    assert (found.cause, found.culprit) == (Cause.STREAM, "w0")
    assert found.reason == f"the leader w0 does not take requests: {why}"
    assert found.seen_at_s == pytest.approx(stream.silent_since_s)

"""Whether the stream to a group's leader lives, and what follows when it does not."""

from __future__ import annotations

from ryzanstein_coordinator import events
from ryzanstein_coordinator.group_record import Cause
from ryzanstein_coordinator.leader_stream import LeaderStream
from ryzanstein_coordinator.standstills import Hearing, Standstill

from .cluster_builders import configuration
from .simulated_cluster import SimulatedCluster
from .test_control_plane import recovery_of, serving

NEW = LeaderStream(silent_since_s=100.0)
ALWAYS = Hearing()


def test_breaks_count_until_the_stream_has_lasted() -> None:
    stream = NEW
    for now_s in (100.0, 110.0, 120.0):  # however long an attempt takes
        stream = stream.broken(now_s)
    assert (stream.breaks, stream.silent_since_s) == (3, 100.0)
    short = stream.alive(121.0).broken(122.0)
    assert (short.breaks, short.silent_since_s) == (4, 122.0)
    lasting = short.alive(123.0).broken(125.0)
    assert (lasting.breaks, lasting.silent_since_s, lasting.alive_since_s) == (1, 125.0, None)


def test_only_the_leaders_answer_is_a_sign_of_life() -> None:
    assert NEW.silent_s(103.0, ALWAYS) == 3.0
    assert NEW.silent_s(103.0, Hearing(102.5)) == 0.5, "before that the coordinator did not run"
    paused = Hearing(standstills=(Standstill(101.0, 102.5),))
    assert NEW.silent_s(103.0, paused) == 1.5, "nobody could be heard meanwhile"
    assert not NEW.fault(103.0, paused, patience_s=2.0)
    assert NEW.fault(103.6, paused, patience_s=2.0)
    alive = NEW.alive(103.0)
    assert alive.alive(104.0) is alive
    assert alive.silent_s(200.0, ALWAYS) == 0.0


def test_one_break_is_no_reason_to_doubt_and_two_are() -> None:
    alive = NEW.alive(100.0)
    once = alive.broken(110.0)
    assert once.takes_requests(110.1, ALWAYS, tolerance_s=0.5)
    assert not once.takes_requests(110.6, ALWAYS, tolerance_s=0.5)
    twice = once.broken(110.2)
    assert not twice.takes_requests(110.2, ALWAYS, tolerance_s=0.5)
    again = twice.alive(110.3)
    assert not again.takes_requests(110.4, ALWAYS, tolerance_s=0.5)
    assert again.takes_requests(112.3, ALWAYS, tolerance_s=0.5)


def test_tokens_that_flow_show_that_a_stream_lasts() -> None:
    """Ready as soon as it can: two breaks in a row, and tokens on the stream that came then."""
    broken = NEW.alive(100.0).broken(100.1).alive(100.2).broken(100.3)
    taken = broken.alive(100.4)
    assert not taken.takes_requests(100.5, ALWAYS, tolerance_s=0.5)
    flowing = taken.alive(100.5, flows=True)
    assert flowing.takes_requests(100.5, ALWAYS, tolerance_s=0.5)
    again = flowing.broken(100.6)
    assert not again.takes_requests(100.7, ALWAYS, tolerance_s=0.5), "that was another stream"
    assert again.breaks == 3, "one that breaks after every token is a fault all the same"
    assert not again.alive(100.8).takes_requests(100.8, ALWAYS, tolerance_s=0.5)


def test_tokens_of_a_stream_that_nobody_doubts_change_nothing() -> None:
    alive = NEW.alive(100.0)
    assert alive.alive(100.1, flows=True) is alive


def deaf() -> tuple[SimulatedCluster, str]:
    """A group whose leader answers everything but takes no stream, from the moment that it serves."""
    cluster = SimulatedCluster(configuration())
    cluster.deaf.add("w0")
    cluster.start("w0", "w1", "w2")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert cluster.members()[0] == "w0"
    return cluster, "w0"


def ready(cluster: SimulatedCluster) -> bool:
    return cluster.control.monitor.readiness(cluster.now_s, cluster.state)[0]


def test_a_leader_that_does_not_take_the_stream_is_replaced_though_no_attempt_fails() -> None:
    cluster, leader = deaf()
    served_at_s = cluster.now_s
    assert ready(cluster)
    cluster.run_for(0.7)
    assert not ready(cluster), "a request sent now would be lost"
    assert cluster.run_until(lambda: leader not in cluster.members() and cluster.all_serve, 3.0)
    assert cluster.now_s - served_at_s < 3.0
    recovery = recovery_of(cluster)
    assert recovery.cause is Cause.STREAM
    assert recovery.culprit is not None
    assert recovery.culprit.worker_id == leader
    cluster.run_for(1.0)
    assert ready(cluster)


def test_attempts_that_fail_seconds_apart_are_failures_in_a_row() -> None:
    cluster, leader = deaf()
    epoch = cluster.state.groups[0].epoch
    cluster.run_for(1.9)
    cluster.send(events.ExecuteBroken("g0", epoch, "UNAVAILABLE"))
    assert not ready(cluster)
    assert cluster.run_until(lambda: leader not in cluster.members() and cluster.all_serve, 3.0)


def test_a_coordinator_that_stood_still_blames_no_leader_whatever_it_hears_of_first() -> None:
    cluster = serving()
    epoch = cluster.state.groups[0].epoch
    cluster.send(events.ExecuteBroken("g0", epoch, "UNAVAILABLE"))
    cluster.now_s += 60.0
    cluster.send(events.ExecuteBroken("g0", epoch, "UNAVAILABLE"))
    cluster.run_for(0.5)
    cluster.send(events.ExecuteAlive("g0", epoch))
    cluster.run_for(5.0)
    assert cluster.state.groups[0].epoch == epoch
    assert ready(cluster)


def test_a_group_whose_stream_broke_twice_is_ready_with_its_first_tokens() -> None:
    cluster = serving()
    epoch = cluster.state.groups[0].epoch
    for _ in range(2):
        cluster.send(events.ExecuteBroken("g0", epoch, "UNAVAILABLE"))
    cluster.send(events.ExecuteAlive("g0", epoch))
    assert not ready(cluster)
    cluster.send(events.ExecuteAlive("g0", epoch, flows=True))
    assert ready(cluster)


def test_news_of_an_older_stream_means_nothing() -> None:
    cluster = serving()
    epoch = cluster.state.groups[0].epoch
    before = cluster.state.groups[0].stream
    cluster.send(events.ExecuteBroken("g0", epoch - 1, "UNAVAILABLE"))
    cluster.send(events.ExecuteAlive("g0", epoch - 1))
    assert cluster.state.groups[0].stream is before

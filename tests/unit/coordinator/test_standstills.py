"""What the coordinator could not hear while it stood still itself is nobody's silence."""

from __future__ import annotations

import itertools

from ryzanstein_coordinator.standstills import Standstill, Standstills, lost_s, with_latest

from .cluster_builders import configuration
from .simulated_cluster import SimulatedCluster
from .test_control_plane import recovery_of, serving

LEASE_S, USUAL_S = 1.0, 0.2


def ticked(standstills: Standstills, *moments_s: float) -> Standstills:
    """As it is known after ticks at these moments."""
    for before_s, now_s in itertools.pairwise(moments_s):
        standstills = with_latest(standstills, now_s, before_s, USUAL_S, LEASE_S)
    return standstills


def test_ticks_that_are_a_little_late_are_no_standstill() -> None:
    assert ticked((), 100.0, 100.05, 100.24, 100.3) == ()


def test_only_what_came_after_the_last_heartbeat_counts() -> None:
    known = ticked((), 100.0, 100.6)
    assert known == (Standstill(100.2, 100.6),)
    assert [round(lost_s(known, heard_s), 6) for heard_s in (99.0, 100.2, 100.5, 100.6)] == [
        0.4,
        0.4,
        0.1,
        0.0,
    ]


def test_one_is_forgotten_when_no_lease_depends_on_it() -> None:
    """Who was not heard of since has lost it by then, whatever else stood still meanwhile."""
    known = ticked((), 100.0, 100.5, 101.5)
    assert len(known) == 2, "of the second since, 0.8 s were another standstill"
    assert ticked(known, 101.5, 101.65, 101.8, 101.95, 102.1, 102.2, 102.35) == known[1:]
    assert ticked(known, *(101.5 + 0.05 * i for i in range(30))) == ()


def test_a_coordinator_that_is_always_late_finds_the_silent_all_the_same() -> None:
    heard_s = now_s = 100.0
    known: Standstills = ()
    while now_s - heard_s - lost_s(known, heard_s) <= LEASE_S:
        known = ticked(known, now_s, now_s + 0.4)
        now_s += 0.4
    assert now_s - heard_s < 2.5
    assert len(known) <= LEASE_S / USUAL_S + 1


def late(cluster: SimulatedCluster, worker_id: str) -> None:
    """Its next heartbeats take half a lease."""
    cluster.stop(worker_id)
    cluster.run_for(0.5)


def test_a_late_heartbeat_and_a_late_coordinator_make_nobody_guilty() -> None:
    cluster = serving()
    epoch, member = cluster.state.groups[0].epoch, cluster.members()[1]
    late(cluster, member)
    cluster.pause(0.45)  # not long enough for new leases, and what has come waits unread
    assert cluster.control.monitor.readiness(cluster.now_s, cluster.state)[0]
    cluster.resume(member)
    cluster.run_for(2.0)
    assert cluster.state.groups[0].epoch == epoch


def test_who_is_silent_beyond_that_loses_the_lease_and_since_when_is_said() -> None:
    cluster = serving()
    epoch, member = cluster.state.groups[0].epoch, cluster.members()[1]
    late(cluster, member)
    cluster.pause(0.45)
    begun_s = cluster.now_s
    assert cluster.run_until(lambda: cluster.state.groups[0].epoch > epoch, 1.5)
    assert cluster.now_s - begun_s < configuration().lease_ttl_s
    recovery = recovery_of(cluster)
    assert recovery.culprit is not None
    assert recovery.culprit.worker_id == member
    assert begun_s - 0.3 < recovery.seen_at_s < cluster.now_s

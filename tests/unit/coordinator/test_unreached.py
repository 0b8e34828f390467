"""A worker whose own port is blocked, while its heartbeats come: it is asked again for as long as it takes."""

from __future__ import annotations

from ryzanstein_coordinator import actions, events
from ryzanstein_coordinator.state import worker_state
from ryzanstein_coordinator.worker_record import WorkerState

from .cluster_builders import configuration
from .simulated_cluster import SimulatedCluster


def test_a_spare_that_was_not_reached_for_long_is_one_again_when_it_is() -> None:
    cluster = SimulatedCluster(configuration())
    cluster.unreached.add("w2")
    cluster.start("w0", "w1", "w2")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    cluster.run_for(60.0)
    asked = [a for _, a in cluster.history if isinstance(a, actions.LoadShard) and a.worker_id == "w2"]
    assert 20 < len(asked) < 40, "seldom enough"
    cluster.unreached.clear()
    assert cluster.run_until(lambda: cluster.record("w2").shard is not None, 5.0)
    assert worker_state(cluster.record("w2"), None) in (WorkerState.STANDBY, WorkerState.LOADING)
    assert cluster.record("w2").strikes == 1


def test_a_member_that_is_not_reached_gives_way_to_a_spare() -> None:
    cluster = SimulatedCluster(configuration())
    cluster.unreached.add("w0")
    cluster.start("w0", "w1", "w2")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert set(cluster.members()) == {"w1", "w2"}


def test_a_group_that_needs_just_that_worker_serves_as_soon_as_it_is_reached() -> None:
    cluster = SimulatedCluster(configuration(spares=0, backoff_limit_s=4.0))
    cluster.unreached.add("w1")
    cluster.start("w0", "w1")
    cluster.run_for(60.0)
    assert not cluster.all_serve
    assert "w1 could not load rank 1: UNAVAILABLE" in cluster.state.groups[0].reason
    cluster.unreached.clear()
    assert cluster.run_until(lambda: cluster.all_serve, 6.0)


def test_a_drained_worker_is_told_to_end_until_it_does() -> None:
    cluster = SimulatedCluster(configuration())
    cluster.start("w0", "w1", "w2")
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    cluster.run_for(2.0)
    cluster.unreached.add("w2")
    cluster.send(events.DrainWorker("w2"))
    cluster.run_for(20.0)
    assert worker_state(cluster.record("w2"), None) is WorkerState.DRAINING
    assert 8 < sum(isinstance(action, actions.DrainProcess) for _, action in cluster.history) < 12
    cluster.unreached.clear()
    assert cluster.run_until(lambda: "w2" not in cluster.state.workers, 3.0)

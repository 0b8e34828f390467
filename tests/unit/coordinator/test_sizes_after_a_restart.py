"""What size a group has after the coordinator was started again."""

from __future__ import annotations

from ryzanstein_coordinator.group_record import Cause, GroupState

from .simulated_cluster import SimulatedCluster
from .test_control_plane import recovery_of, serving
from .test_sizes import group_of, is_degraded, is_whole, resizes, shrunk


def restart_coordinator(cluster: SimulatedCluster, previous: tuple[str, ...]) -> None:
    """The streams of all workers broke with the old coordinator."""
    lengths = {"g0": cluster.promised["g0"]}
    cluster.state = cluster.control.initial(
        cluster.now_s, committed_epoch=100, previous={"g0": previous}, model_lengths=lengths
    )
    cluster._highest.clear()
    cluster.ready.clear()
    for process in cluster.processes.values():
        process.stream = -1
        if process.alive:
            cluster._register(process)


def test_a_restarted_coordinator_goes_on_with_the_ranks_that_serve() -> None:
    cluster = shrunk()
    restart_coordinator(cluster, ("w0",))
    assert cluster.run_until(lambda: is_degraded(cluster), 0.5)
    group = group_of(cluster)
    assert (cluster.members(), group.max_model_len) == (["w0"], 256)
    assert group.reason == "serves with 1 of 2 ranks: so it did when the coordinator was started again"
    cluster.start("w1")
    assert cluster.run_until(lambda: is_whole(cluster), 10.0)
    assert recovery_of(cluster).cause is Cause.RESIZE


def test_a_coordinator_that_comes_back_to_half_a_group_waits_and_then_goes_on_with_it() -> None:
    cluster = serving(spares=0, replacement_wait_s=1.0)
    cluster.kill("w1")
    restart_coordinator(cluster, ("w0", "w1"))
    cluster.run_for(0.9)
    assert group_of(cluster).state is GroupState.WAITING
    assert cluster.run_until(lambda: is_degraded(cluster), 2.0)


def test_a_cluster_that_was_stopped_with_one_rank_starts_with_two() -> None:
    cluster = shrunk()
    cluster.kill("w0")
    cluster.run_for(1.0)
    restart_coordinator(cluster, ("w0",))
    cluster.start("w0")
    cluster.run_for(5.0)
    assert group_of(cluster).state is GroupState.WAITING
    cluster.start("w1")
    assert cluster.run_until(lambda: is_whole(cluster), 2.0)
    assert resizes(cluster)[-2:] == [1, 2]

"""A group whose members can't get all weights takes in somebody who can read the checkpoint."""

from __future__ import annotations

import pytest

from ryzanstein_coordinator.group_record import GroupState, Phase

from .cluster_builders import configuration
from .simulated_cluster import SimulatedCluster


def test_the_last_worker_with_files_dies_in_the_loading_and_comes_back_as_a_standby() -> None:
    cluster = SimulatedCluster(configuration(spares=1))
    cluster.without_files.update({"w1", "w2"})
    cluster.start("w0", "w1", "w2")
    assert cluster.run_until(lambda: cluster.state.groups[0].phase is Phase.LOADING, 2.0)
    assert "w0" in cluster.members()
    cluster.kill("w0", seen_after_s=0.001)
    missing = "no worker can read the checkpoint"
    assert cluster.run_until(lambda: missing in cluster.state.groups[0].reason, 3.0)
    assert cluster.state.groups[0].state is GroupState.WAITING
    assert cluster.members() == ["w1", "w2"] or cluster.members() == ["w2", "w1"]
    actions_before = cluster.actions
    cluster.run_for(5.0)
    assert cluster.actions - actions_before < 10, "it waits quietly"
    cluster.start("w0")
    assert cluster.run_until(lambda: cluster.state.groups[0].state is GroupState.LOADING, 5.0)
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert "w0" in cluster.members()


@pytest.mark.parametrize("seed", range(8))
def test_a_spare_with_files_takes_the_place_of_the_last_member_that_had_them(seed: int) -> None:
    cluster = SimulatedCluster(configuration(spares=2), seed)
    cluster.without_files.update({"w1", "w2"})
    cluster.start("w0", "w1", "w2", "w3")
    assert cluster.run_until(lambda: cluster.state.groups[0].phase is Phase.LOADING, 2.0)
    cluster.kill("w0", seen_after_s=0.001)
    assert cluster.run_until(lambda: cluster.all_serve, 5.0)
    assert "w3" in cluster.members()

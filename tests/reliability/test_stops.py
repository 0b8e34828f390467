"""A process that is stopped, or slow: the lease tells the one from the other."""

from __future__ import annotations

import time

import pytest

from .conftest import Scene
from .faults import stopped
from .test_kills import assert_blamed


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_replaced_and_comes_back_as_a_standby(scene: Scene, rank: int) -> None:
    epoch, victim = scene.epoch, scene.worker(rank)
    with stopped(victim["pid"]):
        assert_blamed(scene.recovered(epoch), victim, "lease")
        scene.traffic.wait_for_flow()
    snapshot = scene.cluster.wait_for(
        lambda s: any(w["id"] == victim["id"] and w["state"] == "standby" for w in s["workers"]),
        "the continued process is a standby",
    )
    back = next(w for w in snapshot["workers"] if w["id"] == victim["id"])
    assert back["pid"] == victim["pid"], "the same process"
    scene.traffic.wait_for_flow()
    assert not scene.traffic.failures


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_slow_within_its_lease_alarms_nobody(scene: Scene, rank: int) -> None:
    epoch, slow = scene.epoch, scene.worker(rank)
    for _ in range(5):
        with stopped(slow["pid"]):
            time.sleep(0.5 * slow["lease_ttl_s"])
        scene.traffic.wait_for_flow(1)
    assert scene.epoch == epoch
    assert scene.worker(rank)["pid"] == slow["pid"]

"""A second death while the first is being mended, two at once, and nobody there to help."""

from __future__ import annotations

import psutil
import pytest

from .conftest import Scene


@pytest.mark.parametrize("point", ["join.begun", "join.formed", "join.warm", "step.prefill"])
def test_the_spare_dies_as_it_takes_over(scene: Scene, point: str) -> None:
    """While the group forms, and in the middle of the replay."""
    epoch, victim, spare = scene.epoch, scene.worker(1), scene.spare()
    scene.failpoints.arm(point, spare["id"], "kill")
    psutil.Process(victim["pid"]).kill()
    scene.recovered(epoch + 1)
    assert scene.failpoints.taken(point, spare["id"])


@pytest.mark.parametrize("point", ["fence.begun", "join.begun", "join.formed", "step.prefill"])
def test_the_survivor_dies_too(scene: Scene, point: str) -> None:
    """While it is told to leave, while the group forms, and in the middle of the replay."""
    epoch, victim, survivor = scene.epoch, scene.worker(1), scene.worker(0)
    scene.failpoints.arm(point, survivor["id"], "kill")
    psutil.Process(victim["pid"]).kill()
    scene.recovered(epoch)
    scene.whole()
    assert scene.failpoints.taken(point, survivor["id"])
    assert survivor["pid"] not in {worker["pid"] for worker in scene.cluster.workers()}


def test_two_ranks_and_the_spare_die_at_once(scene: Scene) -> None:
    epoch = scene.epoch
    for worker in scene.cluster.snapshot()["workers"]:
        psutil.Process(worker["pid"]).kill()
    scene.recovered(epoch)


def test_without_a_spare_the_restarted_worker_takes_the_rank(scene_without_spare: Scene) -> None:
    scene = scene_without_spare
    for rank in (0, 1):
        epoch, victim = scene.epoch, scene.worker(rank)
        psutil.Process(victim["pid"]).kill()
        scene.cluster.wait_for(
            lambda s, epoch=epoch: s["state"] == "serving" and s["epoch"] > epoch, "it serves again"
        )
        assert scene.worker(rank)["id"] == victim["id"]
        scene.traffic.wait_for_flow()

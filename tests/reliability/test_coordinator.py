"""The coordinator dies: workers go on with their weights, clients come back by themselves."""

from __future__ import annotations

import time

import psutil
import pytest

from .conftest import Scene


def coordinator(scene: Scene) -> psutil.Process:
    return next(p for p in scene.cluster.children() if "coordinator" in p.cmdline())


def restarted(scene: Scene, old: psutil.Process, epoch: int) -> None:
    """Until another coordinator has formed the group again."""
    psutil.wait_procs([old], timeout=60)
    listening = time.monotonic() + 60
    while True:
        try:
            scene.cluster.snapshot()
            break
        except OSError:
            assert time.monotonic() < listening, "no coordinator came back"
            time.sleep(0.02)
    scene.cluster.wait_for(lambda s: s["state"] == "serving" and s["epoch"] > epoch, "it serves again")
    assert not old.is_running()


def test_killed_in_the_midst_of_streams(scene: Scene) -> None:
    epoch, pids = scene.epoch, {w["pid"] for w in scene.cluster.workers()}
    old = coordinator(scene)
    old.kill()
    restarted(scene, old, epoch)
    assert {w["pid"] for w in scene.cluster.workers()} == pids, "no worker was restarted"


@pytest.mark.parametrize(
    "point",
    [
        "coordinator.LeaveEpoch",
        "coordinator.AbortWorker",
        "coordinator.LoadShard",
        "coordinator.JoinGroup",
        "coordinator.AnnounceReady",
    ],
)
def test_killed_while_it_mends_the_group(scene: Scene, point: str) -> None:
    epoch, old = scene.epoch, coordinator(scene)
    scene.failpoints.arm(point, "coordinator", "kill")
    psutil.Process(scene.worker(1)["pid"]).kill()
    restarted(scene, old, epoch)
    assert scene.failpoints.taken(point, "coordinator")


def test_a_defect_of_its_own_ends_it_and_not_the_workers(scene: Scene) -> None:
    epoch, old, survivor = scene.epoch, coordinator(scene), scene.worker(0)
    scene.failpoints.arm("coordinator.AbortWorker", "coordinator", "error")
    psutil.Process(scene.worker(1)["pid"]).kill()
    restarted(scene, old, epoch)
    assert survivor["pid"] in {w["pid"] for w in scene.cluster.workers()}


def test_the_coordinator_and_the_leader_die_together(scene: Scene) -> None:
    """What the clients have is all that is left of the tokens."""
    epoch, old, leader = scene.epoch, coordinator(scene), scene.worker(0)
    old.kill()
    psutil.Process(leader["pid"]).kill()
    restarted(scene, old, epoch)


@pytest.mark.parametrize("point", ["request.logged", "request.recorded"])
def test_killed_between_writing_down_and_telling(scene: Scene, point: str) -> None:
    epoch, old = scene.epoch, coordinator(scene)
    scene.failpoints.arm(point, "coordinator", "kill 20")
    restarted(scene, old, epoch)
    assert scene.failpoints.taken(point, "coordinator")

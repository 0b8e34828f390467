"""A rank dies, wherever it stands: its streams go on as if nothing had been."""

from __future__ import annotations

import psutil
import pytest

from .chaos import kills_in_a_row
from .conftest import Scene
from .faults import memory_limited
from .watching import Footprint, HealthWatch


def assert_blamed(recovery: dict[str, object], victim: dict[str, object], cause: str = "process") -> None:
    culprit = recovery["culprit"]
    assert isinstance(culprit, dict), recovery
    assert (recovery["cause"], culprit["worker_id"], culprit["rank"], culprit["pid"]) == (
        cause,
        victim["id"],
        victim["rank"],
        victim["pid"],
    ), recovery


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "point", ["step.planned", "step.prefill", "step.decode", "step.computed", "step.sampled"]
)
def test_killed_within_a_step(scene: Scene, point: str, rank: int) -> None:
    if rank == 1 and point == "step.sampled":
        pytest.skip("only the leader samples")
    epoch, victim = scene.epoch, scene.worker(rank)
    survivor = scene.worker(1 - rank)
    before = Footprint.of(survivor["pid"])
    scene.failpoints.arm(point, victim["id"], "kill 3")
    assert_blamed(scene.recovered(epoch), victim)
    assert scene.failpoints.taken(point, victim["id"])
    scene.whole()
    assert scene.worker(1 - rank)["pid"] == survivor["pid"], "the survivor kept its rank"
    assert not Footprint.of(survivor["pid"]).growth_over(before)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("action", ["segfault", "exit"])
def test_other_ways_to_die(scene: Scene, action: str, rank: int) -> None:
    epoch, victim = scene.epoch, scene.worker(rank)
    scene.failpoints.arm("step.decode", victim["id"], action)
    assert_blamed(scene.recovered(epoch), victim)


def test_killed_by_the_kernel_because_memory_ran_out(scene: Scene) -> None:
    epoch, victim = scene.epoch, scene.worker(1)
    try:
        with memory_limited(victim["pid"], 128 * 2**20):
            scene.failpoints.arm("step.decode", victim["id"], "hold 1")
            assert_blamed(scene.recovered(epoch), victim)
    except OSError as error:
        pytest.skip(f"no control group for memory can be made here: {error}")


def test_a_few_kills_in_a_row_under_load(scene: Scene) -> None:
    """`make chaos` is the long form."""
    cluster, traffic = scene.cluster, scene.traffic
    coordinator = next(p for p in cluster.children() if "coordinator" in p.cmdline())
    before = Footprint.of(coordinator.pid)
    with HealthWatch(cluster.http) as health:
        for kill in kills_in_a_row(cluster, traffic, health, 3, spares=scene.spares):
            assert not kill.misreported
            assert kill.worst_stall_s < 5, "no target, only a sign of a lost replay; see docs/benchmarks.md"
            assert not kill.falsely_ill
    assert not Footprint.of(coordinator.pid).growth_over(before)


def test_an_idle_group_loses_a_rank_and_answers_again(quiet: Scene) -> None:
    epoch, victim = quiet.epoch, quiet.worker(1)
    psutil.Process(victim["pid"]).kill()
    snapshot = quiet.cluster.wait_for(
        lambda s: s["epoch"] > epoch and s["state"] == "serving", "it serves again"
    )
    assert snapshot["last_recovery"]["culprit"]["worker_id"] == victim["id"]
    assert snapshot["last_recovery"]["requests_resumed"] == 0
    quiet.traffic.go_on()
    quiet.whole()

"""What can go wrong inside a step, injected for real: each time the culprit is named, and every stream goes on."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import psutil
import pytest

from ryzanstein_client import Client, InvalidRequest, RyzansteinError
from tests.cluster.harness import Cluster

from .conftest import COLLECTIVE_TIMEOUT_S, Scene
from .test_kills import assert_blamed


def recovery_line(cluster: Cluster, epoch: int) -> dict[str, Any]:
    """What the log says of the recovery that led to this epoch."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in cluster.stderr_lines:
            if '"event": "recovery"' in line:
                entry: dict[str, Any] = json.loads(line)
                if entry["epoch"] == epoch:
                    return entry
        time.sleep(0.02)
    raise AssertionError(f"no log line of the recovery of epoch {epoch}: {cluster.stderr[-4000:]}")


@pytest.mark.parametrize("rank", [0, 1])
def test_nan_in_a_reduction_is_traced_to_its_rank(scene: Scene, rank: int) -> None:
    epoch, culprit = scene.epoch, scene.worker(rank)
    scene.failpoints.arm("collective.all_reduce", culprit["id"], "poison 25")
    recovery = scene.recovered(epoch)
    assert_blamed(recovery, culprit, "collective")
    assert f"what rank {rank} gave to the sum holds NaN or infinity" in recovery["reason"]
    line = recovery_line(scene.cluster, recovery["epoch"])
    named = (line["cause"], line["culprit"], line["rank"], line["pid"], line["reason"])
    assert named == ("collective", culprit["id"], rank, culprit["pid"], recovery["reason"])
    assert line["requests_resumed"] == recovery["requests_resumed"] > 0
    assert 0 <= line["detected_s"] <= line["fenced_s"] <= line["reformed_s"] <= line["first_token_s"]
    stood = {report["rank"]: report["last_collective"] for report in recovery["ranks"]}
    assert stood[rank]["name"] == "all_reduce"
    assert abs(stood[0]["sequence"] - stood[1]["sequence"]) <= 1, "one of them may not have begun it"
    assert line["ranks"][str(rank)] == f"all_reduce #{stood[rank]['sequence']}"
    scene.whole()
    assert culprit["pid"] in {worker["pid"] for worker in scene.cluster.snapshot()["workers"]}


@pytest.mark.parametrize("rank", [0, 1])
def test_an_all_reduce_that_raises_is_its_ranks_failure(scene: Scene, rank: int) -> None:
    epoch, culprit = scene.epoch, scene.worker(rank)
    scene.failpoints.arm("collective.all_reduce", culprit["id"], "error 25")
    recovery = scene.recovered(epoch)
    assert_blamed(recovery, culprit, "collective")
    assert f"it failed on rank {rank}: failpoint: error" in recovery["reason"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_keeps_the_others_waiting_in_a_collective_is_replaced(scene: Scene, rank: int) -> None:
    """Its heartbeats go on all the time, and afterwards it is a spare."""
    epoch, culprit = scene.epoch, scene.worker(rank)
    scene.failpoints.arm("collective.all_reduce", culprit["id"], f"sleep {2 * COLLECTIVE_TIMEOUT_S} 25")
    recovery = scene.recovered(epoch)
    assert_blamed(recovery, culprit, "collective")
    assert f"no answer from rank {rank} within {COLLECTIVE_TIMEOUT_S:g} s" in recovery["reason"]
    scene.whole()
    pids = {worker["pid"] for worker in scene.cluster.snapshot()["workers"]}
    assert culprit["pid"] in pids, "the process has lived through it"


@pytest.mark.parametrize("rank", [0, 1])
def test_memory_that_runs_out_once_changes_no_rank_and_no_stream(scene: Scene, rank: int) -> None:
    epoch, culprit = scene.epoch, scene.worker(rank)
    pids = [worker["pid"] for worker in scene.cluster.workers()]
    scene.failpoints.arm("step.computed", culprit["id"], "memory 3")
    assert_blamed(scene.recovered(epoch), culprit, "memory")
    scene.whole()
    assert [worker["pid"] for worker in scene.cluster.workers()] == pids, "all kept their ranks"


class Asked(threading.Thread):
    """One request, read to its end by a thread."""

    def __init__(self, cluster: Cluster, prompt: list[int]) -> None:
        super().__init__(daemon=True)
        self._client = Client(cluster.grpc)
        self._prompt = prompt
        self.failure: RyzansteinError | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._client as client:
                list(client.stream(self._prompt, max_tokens=50, ignore_eos=True))
        except RyzansteinError as error:
            self.failure = error


def test_the_request_with_which_memory_runs_out_again_is_refused(quiet: Scene) -> None:
    """In its prefill, and when it is tried again."""
    epoch, leader = quiet.epoch, quiet.worker(0)["id"]
    quiet.failpoints.arm("step.computed", leader, "memory")
    asked = Asked(quiet.cluster, [7] * 3000)
    quiet.cluster.wait_for(lambda s: s["epoch"] > epoch, "the group breaks")
    quiet.failpoints.arm("step.computed", leader, "memory")
    asked.join(20)
    assert isinstance(asked.failure, InvalidRequest)
    assert "this request of 3000 tokens (3000 of the prompt, 0 generated) is too large" in str(asked.failure)


def test_a_request_that_breaks_its_group_each_time_is_given_up(scene_without_spare: Scene) -> None:
    scene = scene_without_spare
    scene.traffic.pause()
    victim = scene.worker(1)["id"]
    asked = Asked(scene.cluster, [9] * 200)
    deadline = time.monotonic() + 30
    while asked.is_alive():
        assert time.monotonic() < deadline, "it is not given up"
        scene.failpoints.arm("step.prefill", victim, "error")
        time.sleep(0.002)
    assert asked.failure is not None
    assert "the group broke 5 times while it computed this request" in str(asked.failure)
    scene.failpoints.clear()
    after = Asked(scene.cluster, [9] * 20)
    after.join(20)
    assert after.failure is None
    scene.traffic.go_on()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_device_loses_its_rank_and_its_process_is_started_again(scene: Scene, rank: int) -> None:
    epoch, culprit = scene.epoch, scene.worker(rank)
    scene.failpoints.arm("device.health", culprit["id"], "poison")
    recovery = scene.recovered(epoch)
    assert_blamed(recovery, culprit, "device")
    assert "its device cpu has failed: failpoint" in recovery["reason"]
    scene.whole()
    assert not psutil.pid_exists(culprit["pid"])
    assert "the device has failed: failpoint" in scene.cluster.stderr


def test_a_spare_whose_device_fails_is_given_no_rank_and_started_again(scene: Scene) -> None:
    epoch, spare = scene.epoch, scene.spare()
    scene.failpoints.arm("device.health", spare["id"], "poison")
    scene.cluster.wait_for(
        lambda s: any(w["id"] == spare["id"] and w["pid"] != spare["pid"] for w in s["workers"]),
        "another process",
    )
    scene.whole()
    assert scene.epoch == epoch, "the streams did not notice"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1])
def test_an_engine_that_is_stuck_ends_its_process_where_there_is_no_spare(
    scene_without_spare: Scene, rank: int
) -> None:
    """The group would else wait for ever for a rank that a living process holds."""
    scene = scene_without_spare
    epoch, culprit = scene.epoch, scene.worker(rank)
    scene.failpoints.arm("step.decode", culprit["id"], "sleep 1000")
    recovery = scene.recovered(epoch)
    assert_blamed(recovery, culprit, "stuck")
    assert scene.worker(rank)["id"] == culprit["id"]
    assert scene.worker(rank)["pid"] != culprit["pid"], "another process of the same worker"
    assert "did not leave its group" in scene.cluster.stderr

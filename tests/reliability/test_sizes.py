"""Nobody comes for a dead rank: the group goes on with fewer, if the ledger allows it, and grows back. In float32 the
bundled model gives the same tokens with one rank and with two, so every token is compared here, too.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.harness import Cluster

from .chaos import disturbed_cluster
from .faults import Failpoints, stopped
from .traffic import Traffic
from .watching import HealthWatch

FLAGS = ("--dtype", "float32", "--replacement-wait", "1")
#: Tokens in flight of 4 streams fit into half of it, but not a sequence as long as two ranks can hold.
FOR_TWO_RANKS_ONLY = ("--kv-cache-memory", "6MiB")


def is_degraded(snapshot: dict[str, Any]) -> bool:
    recovery = snapshot["last_recovery"]
    return snapshot["state"] == "degraded" and recovery["first_token_s"] is not None


def is_whole_again(snapshot: dict[str, Any]) -> bool:
    recovery = snapshot["last_recovery"]
    return snapshot["state"] == "serving" and recovery["first_token_s"] is not None


def sizes(cluster: Cluster) -> tuple[int, int]:
    """Ranks that the group says it has, and workers with a rank."""
    return cluster.snapshot()["groups"][0]["tensor_parallel_size"], len(cluster.workers())


def longest_silence_s(traffic: Traffic, since: float) -> float:
    """Of all streams."""
    return max(
        later - earlier
        for stream in traffic.streams
        for earlier, later in itertools.pairwise([since, *(at for at in stream.arrivals if at > since)])
    )


def test_where_one_rank_does_not_hold_what_was_promised_the_group_waits(tmp_path: Path) -> None:
    flags = (*FLAGS, *FOR_TWO_RANKS_ONLY)
    with disturbed_cluster(tmp_path, *flags, streams=4, spares=0) as (cluster, traffic, _):
        promised, victim = cluster.snapshot()["model"]["max_model_len"], cluster.workers()[1]
        with stopped(victim["pid"]):
            snapshot = cluster.wait_for(lambda s: s["state"] == "waiting", "nobody is waited for any more")
            reason = snapshot["groups"][0]["reason"]
            assert "none came within 1 s; 1 rank can't take over" in reason
            assert f"a sequence of {promised} tokens does not fit" in reason
            assert reason.endswith(" fits"), reason
            assert cluster.get("/readyz")[0] == 503
            assert sizes(cluster) == (2, 0)
        cluster.wait_for(is_whole_again, "both ranks serve")
        traffic.wait_for_flow()
        assert cluster.snapshot()["last_recovery"]["cause"] == "lease"


@dataclass(frozen=True, slots=True)
class Sized:
    """Two ranks under load, without a spare."""

    cluster: Cluster
    traffic: Traffic
    health: HealthWatch
    failpoints: Failpoints

    def whole(self) -> None:
        self.cluster.wait_for(lambda s: s["state"] == "serving", "both ranks serve")
        self.traffic.wait_for_flow()
        assert sizes(self.cluster) == (2, 2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sized]:
    failpoints, state_dir = (
        Failpoints(tmp_path_factory.mktemp("failpoints")),
        tmp_path_factory.mktemp("state"),
    )
    with disturbed_cluster(
        state_dir, *FLAGS, streams=8, spares=0, failpoints=failpoints.directory
    ) as disturbed:
        yield Sized(*disturbed, failpoints)


@pytest.fixture
def sized(shared: Sized) -> Iterator[Sized]:
    """Whole before the test and after it."""
    shared.whole()
    yield shared
    shared.whole()


def test_a_stopped_leader_is_done_without_and_taken_back(sized: Sized) -> None:
    cluster, traffic, health = sized.cluster, sized.traffic, sized.health
    victim = cluster.workers()[0]
    stopped_at = time.monotonic()
    with stopped(victim["pid"]):
        snapshot = cluster.wait_for(is_degraded, "one rank serves")
        traffic.wait_for_flow()
        print(f"longest silence at the shrinking: {longest_silence_s(traffic, stopped_at):.3f} s")
        assert sizes(cluster) == (1, 1)
        gone = f"nobody took the place of rank 0 ({victim['id']}) within 1 s"
        assert snapshot["groups"][0]["reason"].startswith(f"serves with 1 of 2 ranks: {gone}")
        status, body = cluster.get("/readyz")
        assert status == 200
        assert "serves with 1 of 2 ranks" in body
        recovery = snapshot["last_recovery"]
        assert (recovery["cause"], recovery["culprit"]["worker_id"]) == ("lease", victim["id"])
        assert recovery["reason"].endswith("goes on with 1 of 2 ranks")
        calm_since = time.monotonic()
    snapshot = cluster.wait_for(is_whole_again, "both ranks serve")
    traffic.wait_for_flow()
    assert sizes(cluster) == (2, 2)
    recovery = snapshot["last_recovery"]
    assert (recovery["cause"], recovery["culprit"]) == ("resize", None)
    assert recovery["reason"] == f"grows from 1 to 2 ranks with {victim['id']}"
    assert victim["pid"] in {worker["pid"] for worker in cluster.workers()}, "the same process"
    stall_s = longest_silence_s(traffic, calm_since)
    print(f"longest silence at the growing: {stall_s:.3f} s; {recovery}")
    assert stall_s < 3, "no target, only a sign that somebody was waited for"
    assert health.falsely_ill(calm_since, time.monotonic()) <= 2 + stall_s / 0.005, "ill for longer than that"
    assert not traffic.failures


def test_the_worker_that_the_group_grows_by_dies_at_it(sized: Sized) -> None:
    cluster, traffic, failpoints = sized.cluster, sized.traffic, sized.failpoints
    victim = cluster.workers()[1]
    with stopped(victim["pid"]):
        cluster.wait_for(is_degraded, "one rank serves")
    failpoints.arm("join.formed", victim["id"], "kill")
    snapshot = cluster.wait_for(
        lambda s: is_degraded(s) and s["last_recovery"]["cause"] == "resize", "it goes on with one rank"
    )
    assert failpoints.taken("join.formed", victim["id"])
    recovery = snapshot["last_recovery"]
    assert recovery["culprit"] is None
    assert recovery["reason"].startswith(f"grows from 1 to 2 ranks with {victim['id']}, in vain: ")
    assert recovery["reformed_s"] < 1, "nobody was waited for"
    traffic.wait_for_flow()


def test_the_coordinator_dies_while_one_rank_serves(sized: Sized) -> None:
    cluster, traffic = sized.cluster, sized.traffic
    victim = cluster.workers()[1]
    with stopped(victim["pid"]):
        epoch = cluster.wait_for(is_degraded, "one rank serves")["epoch"]
        coordinator = next(p for p in cluster.children() if "coordinator" in p.cmdline())
        psutil.Process(coordinator.pid).kill()
        coordinator.wait(10)
        traffic.wait_for_flow()
        snapshot = cluster.snapshot()
        assert (snapshot["state"], snapshot["epoch"] > epoch) == ("degraded", True)
        assert "when the coordinator was started again" in snapshot["groups"][0]["reason"]
    cluster.wait_for(lambda s: s["state"] == "serving", "both ranks serve")
    traffic.wait_for_flow()

"""A worker that dies is started again and takes its rank; streams wait for it and go on where they were."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ryzanstein_client import Client
from ryzanstein_client.types import RequestOptions

from .harness import BUNDLED_MODEL, Cluster

REQUEST: RequestOptions = {"max_tokens": 400, "ignore_eos": True, "seed": 11, "temperature": 1.0}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("state"), BUNDLED_MODEL, "--dtype", "float32") as cluster:
        yield cluster.ready()


@pytest.fixture
def whole(shared: Cluster) -> Cluster:
    """Two ranks without a spare, all there, whatever the test before has killed."""
    shared.wait_for(lambda s: s["state"] == "serving" and len(s["workers"]) == 2, "it is whole")
    return shared


def assert_replaced(cluster: Cluster, rank: int, spares: int) -> None:
    """Kills the rank in the midst of a stream, of which no token is lost or repeated."""
    epoch = cluster.snapshot()["epoch"]
    with Client(cluster.grpc) as client:
        undisturbed = client.generate("Q: ", **REQUEST).token_ids
        victim = cluster.workers()[rank]
        tokens: list[int] = []
        for chunk in client.stream("Q: ", **REQUEST):
            tokens += chunk.token_ids
            if victim and len(tokens) >= 40:
                psutil.Process(victim["pid"]).send_signal(signal.SIGKILL)
                killed, victim = victim, {}
    assert tokens == list(undisturbed)
    snapshot = cluster.snapshot()
    recovery = snapshot["last_recovery"]
    assert recovery["culprit"]["worker_id"] == killed["id"]
    assert recovery["culprit"]["rank"] == rank
    assert recovery["culprit"]["pid"] == killed["pid"]
    assert recovery["cause"] == "process"
    assert recovery["requests_resumed"] == 1
    assert snapshot["epoch"] > epoch
    assert cluster.get("/readyz")[0] == 200
    # The place that became free is filled again.
    cluster.wait_for(
        lambda s: sum(w["state"] in ("active", "standby") for w in s["workers"]) == 2 + spares,
        "all are back",
    )


def test_a_killed_leader_is_replaced_by_the_spare(tmp_path: Path) -> None:  # the rest is in tests/reliability
    with Cluster(tmp_path, BUNDLED_MODEL, "--dtype", "float32", "--spares", "1") as cluster:
        cluster.ready()
        cluster.wait_for(
            lambda s: any(w["state"] == "standby" and w["load_progress"] == 1.0 for w in s["workers"]),
            "the spare holds a shard",
        )
        assert_replaced(cluster, rank=0, spares=1)


def test_a_killed_rank_without_a_spare_is_started_again(whole: Cluster) -> None:
    assert_replaced(whole, rank=1, spares=0)


def test_health_says_no_while_a_rank_is_gone_and_yes_again(whole: Cluster) -> None:
    assert whole.get("/health")[0] == 200
    victim = whole.workers()[1]
    psutil.Process(victim["pid"]).kill()
    killed_at = time.monotonic()
    status = 200
    while status == 200:
        assert time.monotonic() - killed_at < 2, "health never said no"
        status, body = whole.get("/health")
    assert status == 503
    assert victim["id"] in body or "rank 1" in body, body  # a survivor that sees it first names the rank
    whole.wait_for(lambda s: s["state"] == "serving", "it serves again")
    assert whole.get("/health")[0] == 200


def test_a_killed_coordinator_comes_back_on_its_ports_and_streams_go_on(whole: Cluster) -> None:
    with Client(whole.grpc) as client:
        undisturbed = client.generate("Q: ", **REQUEST).token_ids
        epoch = whole.snapshot()["epoch"]
        workers = {worker["pid"] for worker in whole.workers()}
        coordinator = next(p for p in whole.children() if "ryzanstein_coordinator" in p.cmdline())
        tokens: list[int] = []
        killed = threading.Event()
        for chunk in client.stream("Q: ", **REQUEST):
            tokens += chunk.token_ids
            if len(tokens) >= 40 and not killed.is_set():
                coordinator.kill()
                killed.set()
        assert tokens == list(undisturbed)
    whole.wait_for_log("coordinator_back")
    with pytest.raises(AssertionError, match="no output"):
        whole.line(0.1)  # the ready line comes once
    assert whole.snapshot()["epoch"] > epoch
    assert {worker["pid"] for worker in whole.workers()} == workers, "no worker was restarted"

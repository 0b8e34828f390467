"""A worker that dies is started again and takes its rank; streams wait for it and go on where they were."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from ryzanstein_client import Client
from ryzanstein_client.types import RequestOptions

from .harness import BUNDLED_MODEL, Cluster


@pytest.mark.parametrize(("rank", "spares"), [(0, 1), (1, 0)])  # the rest is in tests/reliability
def test_a_killed_rank_is_replaced_and_no_token_is_lost_or_repeated(
    rank: int, spares: int, tmp_path: Path
) -> None:
    request: RequestOptions = {"max_tokens": 400, "ignore_eos": True, "seed": 11, "temperature": 1.0}
    with (
        Cluster(tmp_path, BUNDLED_MODEL, "--dtype", "float32", "--spares", str(spares)) as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        if spares:
            cluster.wait_for(
                lambda s: any(w["state"] == "standby" and w["load_progress"] == 1.0 for w in s["workers"]),
                "the spare holds a shard",
            )
        undisturbed = client.generate("Q: ", **request).token_ids
        victim = cluster.workers()[rank]
        tokens: list[int] = []
        for chunk in client.stream("Q: ", **request):
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
        assert snapshot["epoch"] > 1
        assert cluster.get("/readyz")[0] == 200
        # The place that became free is filled again.
        cluster.wait_for(
            lambda s: sum(w["state"] in ("active", "standby") for w in s["workers"]) == 2 + spares,
            "all are back",
        )


def test_health_says_no_while_a_rank_is_gone_and_yes_again(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        cluster.ready()
        assert cluster.get("/health")[0] == 200
        psutil.Process(cluster.workers()[1]["pid"]).kill()
        killed_at = time.monotonic()
        status = 200
        while status == 200:
            assert time.monotonic() - killed_at < 2, "health never said no"
            status, body = cluster.get("/health")
        assert status == 503
        assert "worker-1" in body
        cluster.wait_for(lambda s: s["state"] == "serving", "it serves again")
        assert cluster.get("/health")[0] == 200


def test_a_killed_coordinator_comes_back_on_its_ports_and_streams_go_on(tmp_path: Path) -> None:
    request: RequestOptions = {"max_tokens": 400, "ignore_eos": True, "seed": 11, "temperature": 1.0}
    with (
        Cluster(tmp_path, BUNDLED_MODEL, "--dtype", "float32") as cluster,
        Client(cluster.ready().grpc) as client,
    ):
        undisturbed = client.generate("Q: ", **request).token_ids
        epoch = cluster.snapshot()["epoch"]
        workers = {worker["pid"] for worker in cluster.workers()}
        coordinator = next(p for p in cluster.children() if "ryzanstein_coordinator" in p.cmdline())
        tokens: list[int] = []
        killed = threading.Event()
        for chunk in client.stream("Q: ", **request):
            tokens += chunk.token_ids
            if len(tokens) >= 40 and not killed.is_set():
                coordinator.kill()
                killed.set()
        assert tokens == list(undisturbed)
        cluster.wait_for_log("coordinator_back")
        with pytest.raises(AssertionError, match="no output"):
            cluster.line(0.1)  # the ready line comes once
        assert cluster.snapshot()["epoch"] > epoch
        assert {worker["pid"] for worker in cluster.workers()} == workers, "no worker was restarted"

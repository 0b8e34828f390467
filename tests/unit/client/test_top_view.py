"""`top` on terminals of many sizes, from snapshots."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from ryzanstein.v1 import operations_pb2
from ryzanstein.wire import to_plain
from ryzanstein_client.cli.top_view import TopView
from ryzanstein_client.cli.words import ago_text, duration_text

CULPRIT = operations_pb2.Culprit(worker_id="w1", rank=1, host="alpha", device="cuda:1", pid=71)


def snapshot(**changes: Any) -> dict[str, Any]:
    """Two ranks that serve again, seven seconds after one had died."""
    fields: dict[str, Any] = {
        "state": "serving",
        "epoch": 2,
        "model": operations_pb2.ModelStatus(name="llama"),
        "groups": [operations_pb2.GroupStatus(id="g0", state="serving", tensor_parallel_size=2, epoch=2)],
        "workers": [
            operations_pb2.WorkerStatus(
                id=f"w{rank}",
                rank=rank,
                state="active",
                phase="serving",
                heartbeat_age_s=0.08,
                lease_ttl_s=1.0,
                step=9,
                step_duration_s=0.021,
                communication_ratio=0.25,
                memory=operations_pb2.WorkerMemory(used_bytes=2**30),
            )
            for rank in range(2)
        ],
        "requests": operations_pb2.RequestCounts(running=3, waiting=1),
        "readiness": operations_pb2.ReadinessStatus(ready=True),
        "traffic": operations_pb2.TrafficStatus(
            generated_tokens_per_s=464,
            running=3,
            waiting=1,
            first_token_p50_s=0.041,
            first_token_p99_s=0.4,
        ),
        "last_recovery": recovery(reformed_s=0.1, first_token_s=0.113, requests_resumed=3),
        "history": [
            operations_pb2.EpochStatus(
                group="g0",
                epoch=2,
                began_unix_s=993,
                served_unix_s=993.2,
                recovery=recovery(reformed_s=0.1, first_token_s=0.113, requests_resumed=3),
            ),
            operations_pb2.EpochStatus(group="g0", epoch=1, began_unix_s=400, served_unix_s=401),
        ],
        "unix_s": 1000.0,
    }
    return to_plain(operations_pb2.ClusterSnapshot(**{**fields, **changes}))


def recovery(**changes: Any) -> operations_pb2.RecoveryStatus:
    return operations_pb2.RecoveryStatus(epoch=2, cause="process", culprit=CULPRIT, **changes)


def shown(view: TopView, width: int = 80, height: int = 24) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, color_system=None, force_terminal=True)
    console.print(view)
    return file.getvalue()


def test_it_tells_the_state_the_numbers_the_workers_and_the_epochs() -> None:
    view = TopView()
    view.update(snapshot())
    text = shown(view)
    assert text.startswith("● serving  llama  epoch 2, 2 of 2 ranks, 0 spares")
    assert "7 s ago: w1 (rank 1): its process died; next token after 113 ms, 3 streams" in text
    assert "464 tokens/s" in text
    assert "41 ms, 99 % in 400 ms" in text
    assert "3 running, 1 waiting" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("w0"))
    assert row == ["w0", "0", "active", "0", "1.0", "GiB", "21", "ms", "25%", "80", "ms"]
    assert "epoch 1  10 min ago  started" in text


def test_the_culprit_is_named_while_the_group_recovers() -> None:
    view = TopView()
    groups = [operations_pb2.GroupStatus(id="g0", state="recovering", reason="1 of 2 workers are ready")]
    not_ready = operations_pb2.ReadinessStatus(ready=False, reason="group g0: recovering")
    view.update(snapshot(state="recovering", groups=groups, readiness=not_ready, last_recovery=recovery()))
    text = shown(view, width=120)
    assert text.startswith("■ recovering")
    assert "to blame: w1 (rank 1): its process died (host alpha, cuda:1, process 71)" in text
    assert "group g0: recovering: 1 of 2 workers are ready" in text


def test_without_the_coordinator_the_last_state_stays_and_says_how_old_it_is() -> None:
    view = TopView()
    view.update(snapshot())
    view.lost("can't reach the coordinator", "12:00:01")
    view.lost("can't reach the coordinator", "12:00:02")
    text = shown(view)
    assert text.startswith("■ can't reach the coordinator")
    assert "as it was at 12:00:01" in text
    assert "w1" in text
    view.update(snapshot())
    assert shown(view).startswith("● serving")


@pytest.mark.parametrize("width", [24, 40, 60, 80, 132])
def test_no_line_is_wider_than_the_terminal_and_what_matters_stays(width: int) -> None:
    view = TopView()
    view.update(snapshot())
    text = shown(view, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "serving" in text
    assert "w1" in text


def test_a_short_terminal_gets_fewer_epochs() -> None:
    view = TopView()
    old = [
        operations_pb2.EpochStatus(group="g0", epoch=100 - n, began_unix_s=900 - n, served_unix_s=900)
        for n in range(30)
    ]
    view.update(snapshot(history=old))
    assert shown(view, height=24).count("epoch ") < shown(view, height=60).count("epoch ")
    assert len(shown(view, height=24).splitlines()) <= 24


def test_an_old_coordinator_that_tells_less_is_shown_too() -> None:
    view = TopView()
    cluster = snapshot(last_recovery=None, history=[])
    for key in ("traffic", "readiness", "history", "unix_s"):
        del cluster[key]
    view.update(cluster)
    assert "requests: 3 running, 1 waiting" in shown(view)


def test_times_are_short() -> None:
    seconds = (0.0004, 0.038, 1.25, 42.0, 300.0, 7200.0, 400_000.0)
    assert [duration_text(each) for each in seconds] == [
        "0.4 ms", "38 ms", "1.25 s", "42 s", "5 min", "2 h", "5 days",
    ]  # fmt: skip
    assert [ago_text(each) for each in (0.2, 9.0, 600.0)] == ["just now", "9 s ago", "10 min ago"]

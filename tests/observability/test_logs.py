"""The logs of real processes: JSON lines that tell who speaks, in which epoch, about which request."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from typing import Any

from ryzanstein_client import Client

from .conftest import INFERENCE_KEY, OPERATIONS_KEY, Watched


def lines(watched: Watched) -> list[dict[str, Any]]:
    """What was logged so far; every line is JSON. gRPC's own, which nobody can format, begin otherwise."""
    texts = [line for line in "".join(watched.cluster.stderr_lines).splitlines() if line.startswith("{")]
    return [json.loads(text) for text in texts]


def ask(watched: Watched, request_id: str) -> None:
    """A completion over HTTP, under that name."""
    headers = {
        "authorization": f"Bearer {INFERENCE_KEY}",
        "content-type": "application/json",
        "x-request-id": request_id,
    }
    body = json.dumps({"prompt": "1 + 2 =", "max_tokens": 4}).encode()
    asked = urllib.request.Request(f"{watched.cluster.http}/v1/completions", data=body, headers=headers)
    with urllib.request.urlopen(asked, timeout=30) as reply:
        assert reply.headers["x-request-id"] == request_id


def test_lines_carry_service_worker_rank_epoch_and_request_id_and_no_key(watched: Watched) -> None:
    with Client(watched.cluster.grpc, api_key=INFERENCE_KEY) as client:
        client.generate("1 + 2 =", max_tokens=4, ignore_eos=True, request_id="over-grpc")
    ask(watched, "over-http")
    deadline = time.monotonic() + 10
    while len(done := [line for line in lines(watched) if line["event"] == "request"]) < 2:
        assert time.monotonic() < deadline, watched.cluster.stderr
        time.sleep(0.02)
    known = {line["request_id"]: line for line in done}
    assert (known["over-grpc"]["outcome"], known["over-grpc"]["generated_tokens"]) == ("length", 4)
    assert known["over-grpc"]["owner"] == "alice"
    assert known["over-grpc"]["epoch"] >= 1
    assert "over-http" in {line.get("http_request_id") for line in done}

    logged = lines(watched)
    assert {line["service"] for line in logged} == {"serve", "coordinator", "shard-worker"}
    joined = [line for line in logged if line["event"] == "group_joined"]
    assert {line["rank"] for line in joined} == {0, 1}
    assert all(line["epoch"] >= 1 and line["worker"].startswith("worker-") for line in joined)
    for line in logged:
        assert list(line)[:3] == ["timestamp", "level", "event"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line["timestamp"])
    assert INFERENCE_KEY not in watched.cluster.stderr
    assert OPERATIONS_KEY not in watched.cluster.stderr

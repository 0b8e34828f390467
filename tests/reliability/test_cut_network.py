"""Two ranks on two hosts, and a network that is cut between them: control, data, both; healed later."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.harness import BUNDLED_MODEL, READY, Program

from .two_hosts import ADDRESSES, TwoHosts, missing, two_hosts

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

GRPC, HTTP, WORKERS = 50051, 8000, (6001, 6002)
TOKENS = 400
CONTROL = (GRPC, *WORKERS)


@dataclass(frozen=True, slots=True)
class Apart:
    """A coordinator and rank 0 on one host, rank 1 on the other."""

    hosts: TwoHosts
    #: What the stream gives undisturbed.
    expected: str = ""

    def snapshot(self) -> dict[str, Any]:
        fetch = f"import urllib.request as u; print(u.urlopen('http://{ADDRESSES[0]}:{HTTP}/cluster').read().decode())"
        done = subprocess.run(
            [*self.hosts.prefix(0), sys.executable, "-c", fetch], capture_output=True, text=True, check=True
        )
        loaded: dict[str, Any] = json.loads(done.stdout)
        return loaded

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = 40.0
    ) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not wanted(snapshot := self.snapshot()):
            assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s: {snapshot}"
            time.sleep(0.1)
        return snapshot

    def stream(self) -> Program:
        """A long request through the client library, in a process of its own, which prints its tokens at the end."""
        return Program(command=[*self.hosts.prefix(0), sys.executable, "-c", CLIENT])


CLIENT = f"""
from ryzanstein_client import Client
with Client("{ADDRESSES[0]}:{GRPC}") as client:
    stream = client.stream("Q: ", max_tokens={TOKENS}, ignore_eos=True, temperature=1.0, seed=4)
    tokens = [token for chunk in stream for token in chunk.token_ids]
print(*tokens)
"""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    with ExitStack() as stack:
        hosts = stack.enter_context(two_hosts())
        coordinator = stack.enter_context(
            hosts.run(
                0, "coordinator", str(BUNDLED_MODEL), "--tensor-parallel-size", "2", "--host", ADDRESSES[0],
                "--insecure", "--grpc-port", str(GRPC), "--http-port", str(HTTP), "--collective-timeout", "5",
                "--state-dir", str(tmp_path_factory.mktemp("state")), module="ryzanstein_coordinator",
            )
        )  # fmt: skip
        for number, (address, port) in enumerate(zip(ADDRESSES, WORKERS, strict=True)):
            stack.enter_context(
                    hosts.run(
                        number, "shard-worker", "--coordinator", f"{ADDRESSES[0]}:{GRPC}", "--host", address,
                        "--port", str(port), "--insecure", "--device", "cpu", "--worker-id", f"worker-{number}",
                        "--cpu-threads", "1", module="ryzanstein_shard_worker", restarted=True,
                    )
            )  # fmt: skip
        assert READY.fullmatch(coordinator.line(60))
        with Apart(hosts).stream() as undisturbed:
            expected = undisturbed.line(120)
        assert len(expected.split()) == TOKENS
        yield Apart(hosts, expected)


@pytest.mark.parametrize("which", ["control", "data", "both"])
def test_a_cut_network_stalls_streams_and_healed_lets_them_go_on(apart: Apart, which: str) -> None:
    epoch = apart.snapshot()["epoch"]
    with apart.stream() as stream:
        apart.wait_for(lambda s: s["requests"]["running"] == 1, "the stream runs")
        time.sleep(1)
        match which:
            case "control":
                apart.hosts.cut_ports(CONTROL)
            case "data":
                apart.hosts.cut_all_but(CONTROL)
            case "both":
                apart.hosts.pull_the_plug()
        try:
            snapshot = apart.wait_for(lambda s: s["state"] != "serving", "the cut is seen")
            assert snapshot["last_recovery"]["cause"] in ("lease", "collective", "process", "stuck")
            time.sleep(2)
        finally:
            apart.hosts.heal()
            apart.hosts.plug_in()
        healed = apart.wait_for(lambda s: s["state"] == "serving" and s["epoch"] > epoch, "it serves again")
        assert stream.line(120) == apart.expected
        assert healed["last_recovery"]["requests_resumed"] == 1

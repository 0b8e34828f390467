"""One cluster that asks for keys, watched by a browser and by a Prometheus: starting it costs seconds."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..cluster.harness import BUNDLED_MODEL, Cluster
from ..reliability.faults import Failpoints

DEPLOY = Path(__file__).parents[2] / "deploy"
INFERENCE_KEY = "inference-0123456789abcdef"
OPERATIONS_KEY = "operations-0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Watched:
    """A cluster of two ranks and a spare, and where its processes can be made to fail."""

    cluster: Cluster
    failpoints: Failpoints

    def snapshot(self) -> dict[str, Any]:
        """What /cluster says to whoever has the key."""
        asked = urllib.request.Request(
            f"{self.cluster.http}/cluster", headers={"authorization": f"Bearer {OPERATIONS_KEY}"}
        )
        with urllib.request.urlopen(asked, timeout=10) as reply:
            loaded: dict[str, Any] = json.load(reply)
            return loaded


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("watched")
    points = directory / "failpoints"
    points.mkdir()
    keys = directory / "keys"
    keys.write_text(f"{INFERENCE_KEY} alice\n{OPERATIONS_KEY} dashboard operations\n", encoding="utf-8")
    keys.chmod(0o600)
    flags = ("--spares", "1", "--cpu-threads", "1", "--api-key-file", str(keys))
    with Cluster(directory / "state", BUNDLED_MODEL, *flags, failpoints=points) as cluster:
        yield Watched(cluster.ready(), Failpoints(points))


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A real one that scrapes the cluster every half second."""

    address: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector. Fails with Prometheus' own message."""
        words = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.address}/api/v1/query?{words}", timeout=10) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=10) as reply:
            return json.load(reply)["data"]


@pytest.fixture(scope="session")
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    """With the configuration of deploy/, but for addresses and pace; None where it is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        yield None
        return
    directory = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(DEPLOY / "prometheus", directory, dirs_exist_ok=True)
    (directory / "operations.key").write_text(OPERATIONS_KEY, encoding="utf-8")
    settings = directory / "prometheus.yml"
    text = settings.read_text(encoding="utf-8").replace("127.0.0.1:8000", watched.cluster.http.split("//")[1])
    settings.write_text(text.replace("scrape_interval: 5s", "scrape_interval: 500ms"), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program, f"--config.file={settings}", f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield _until_ready(Prometheus(f"http://{address}"), process, directory / "log")
        finally:
            process.kill()
            process.wait(10)


def _until_ready(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> Prometheus:
    deadline = time.monotonic() + 20
    while True:
        try:
            prometheus.query("up")
        except OSError:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.05)
        else:
            return prometheus

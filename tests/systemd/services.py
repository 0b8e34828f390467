"""The services as install.sh leaves them, on a machine of their own: coordinator, two ranks, a spare, with keys."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryzanstein_client import Client
from tests.reliability.traffic import Traffic, sampled_requests

from .machine import SITE, SOURCE, SYSTEM_PYTHON, Machine

COORDINATOR = "ryzanstein-coordinator.service"
WORKERS = tuple(f"ryzanstein-shard-worker@{number}.service" for number in range(3))
INSTALL = f"{SOURCE}/deploy/systemd/install.sh"
FAILPOINTS = "/run/test/failpoints"
#: Of every unit here: long enough for crowded processors.
WATCHDOG_S = 5
_STREAMS = 4
_ENVIRONMENT = "/opt/prepared"
#: What a test machine needs beside the installed units: quick watchdogs, and failpoints.
_DROP_IN = f"""
[Service]
WatchdogSec={WATCHDOG_S}
Environment=RYZANSTEIN_FAILPOINTS={FAILPOINTS}
ReadWritePaths={FAILPOINTS}
"""


@dataclass(frozen=True, slots=True)
class Services:
    """The installed services, running."""

    machine: Machine
    #: HOST:PORT.
    grpc: str
    #: May do everything.
    key: str
    failpoints: Path
    traffic: Traffic

    def client(self) -> Client:
        return Client(self.grpc, api_key=self.key, connect_timeout_s=20)

    def cluster(self) -> dict[str, Any]:
        """What /cluster says."""
        with self.client() as client:
            return dict(client.cluster())

    def whole(self) -> None:
        """Until all is as after the start, and every stream flows; no token was wrong."""

        def is_whole() -> bool:
            cluster = self.cluster()
            ready = [w for w in cluster["workers"] if w["state"] == "standby" and w["load_progress"] == 1.0]
            return cluster["state"] == "serving" and len(ready) == 1

        self.machine.wait_for(is_whole, "two ranks serve and a spare stands by")
        self.traffic.wait_for_flow()
        assert not self.traffic.failures, self.traffic.failures

    def pause(self) -> None:
        """Until no stream runs; fails with what the services said."""
        try:
            self.traffic.pause()
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.cluster()} {self.machine.journal()[-6000:]}") from None

    def unit_of(self, *, rank: int | None) -> str:
        """The worker's unit that has this rank; None: the standby's."""
        worker = next(w for w in self.cluster()["workers"] if w["rank"] == rank)
        return f"ryzanstein-shard-worker@{worker['id'].rpartition(':')[2]}.service"

    def worker_id(self, unit: str) -> str:
        pid = int(self.machine.property(unit, "MainPID"))
        return str(next(w["id"] for w in self.cluster()["workers"] if w["pid"] == pid))

    def restarts(self, unit: str) -> int:
        return int(self.machine.property(unit, "NRestarts"))

    def arm(self, point: str, process: str, action: str) -> None:
        """See `ryzanstein.failpoints`."""
        staged = self.failpoints / f".{point}"
        staged.write_text(action, encoding="utf-8")
        staged.chmod(0o666)
        staged.rename(self.failpoints / f"{point}@{process}")


@contextlib.contextmanager
def installed(machine: Machine, directory: Path) -> Iterator[Services]:
    """Installs, starts and waits until it serves; `directory` is /run/test inside."""
    failpoints = directory / "failpoints"
    failpoints.mkdir()
    failpoints.chmod(0o777)
    directory.chmod(0o755)
    _prepare_environment(machine)
    machine.run("cp", "-r", f"{SOURCE}/coordinator/ryzanstein_coordinator/bundled_model", "/srv/model")
    grpc_port, http_port = _free_ports(2)
    # What the script finds is kept: here the ports, which must be free on the machine around this one.
    machine.write(
        "/etc/ryzanstein/coordinator.env",
        f"RYZANSTEIN_GRPC_PORT={grpc_port}\nRYZANSTEIN_HTTP_PORT={http_port}\n",
    )
    machine.write(
        "/etc/ryzanstein/shard-worker.env",
        f"RYZANSTEIN_DEVICE=cpu\nRYZANSTEIN_COORDINATOR=127.0.0.1:{grpc_port}\nOMP_NUM_THREADS=1\n",
    )
    for unit in (COORDINATOR, "ryzanstein-shard-worker@.service"):
        machine.write(f"/etc/systemd/system/{unit}.d/90-test.conf", _DROP_IN)
    said = machine.run(
        INSTALL, "install", "--venv", _ENVIRONMENT, "--model-dir", "/srv/model", "--workers", "3", "--spares", "1",
        "--device", "cpu", "--cpu-threads", "1", "--start",
    ).stderr  # fmt: skip
    assert "settings: /etc/ryzanstein/coordinator.toml is new" in said, said
    keys = machine.run("cat", "/etc/ryzanstein/credentials/api-keys").stdout.splitlines()
    key = next(line.split()[0] for line in keys if line.endswith("inference,operations"))
    requests = sampled_requests(_STREAMS + 2, seed=11, vocab_size=1003, prompt_tokens=60, tokens=160)
    address = f"127.0.0.1:{grpc_port}"
    with Traffic(address, requests, streams=_STREAMS, api_key=key) as traffic:
        services = Services(machine, address, key, failpoints, traffic)
        services.whole()
        yield services


def _prepare_environment(machine: Machine) -> None:
    """What install.sh would make with pip: an environment of the system's Python, with this checkout's packages."""
    machine.run(str(SYSTEM_PYTHON), "-m", "venv", "--without-pip", _ENVIRONMENT)
    folders = [f"{SOURCE}/{name}" for name in ("protos", "coordinator", "shard_worker", "client")]
    purelib = machine.run(
        f"{_ENVIRONMENT}/bin/python3", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    ).stdout.strip()
    machine.write(f"{purelib}/ryzanstein.pth", "\n".join([*folders, SITE]))
    script = "import sys\nfrom ryzanstein_client.cli.main import main\nsys.exit(main())\n"
    machine.write(f"{_ENVIRONMENT}/bin/ryzanstein", f"#!{_ENVIRONMENT}/bin/python3\n{script}")
    machine.run("chmod", "755", f"{_ENVIRONMENT}/bin/ryzanstein")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()

#!/usr/bin/env python3
"""Restarts the services of this machine one after the other, under load: after an upgrade, or a change of settings.

    /opt/ryzanstein/rolling_restart.py            # as root

Standbys first, then the ranks from the last to the first, the coordinator at the end. A worker that is restarted hands
its rank to a standby and comes back as one, so there must be one. The coordinator makes way and comes back; workers
keep their group meanwhile. No stream of the client library is lost or changed; what plain HTTP clients see stands in
README.md. Whatever does not come back in time ends the procedure: the rest keeps running as it is.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ryzanstein_client import Client, RyzansteinError

COORDINATOR = "ryzanstein-coordinator.service"
WORKERS = "ryzanstein-shard-worker@*.service"
KEYS = Path("/etc/ryzanstein/credentials/api-keys")

#: A standby that has loaded nothing for so long has no room to: it takes a rank all the same, only slower.
SETTLED_S = 10.0
_LOOK_EVERY_S = 0.2

Cluster = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unit:
    """A service of systemd that runs."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next: restart a unit, or wait, or end (with `wrong` saying why, if not because all is done)."""

    restart: Unit | None = None
    wait_for: str = ""
    wrong: str = ""


def next_step(
    units: Sequence[Unit], done: frozenset[str], cluster: Cluster, *, host: str, quiet_s: float, alone: bool
) -> Step:
    """The next step of the workers' restart. Pure.

    Args:
        units: the workers' units on this machine, as they run now.
        done: names of those that were restarted.
        cluster: what /cluster says.
        host: this machine's name in it.
        quiet_s: for how long the cluster has looked like this.
        alone: ranks are restarted also where no standby can take them.
    """
    ours = {worker["pid"]: worker for worker in cluster["workers"] if worker["host"] == host}
    for unit in units:
        worker = ours.get(unit.pid)
        if worker is None or worker["state"] in ("joining", "loading", "suspect", "draining"):
            return Step(
                wait_for=f"{unit.name} to join the cluster" if worker is None else f"{unit.name} to settle"
            )
        if worker["state"] in ("lost", "failed"):
            return Step(wrong=f"{unit.name}: {worker['id']} is {worker['state']}: {worker['phase']}")
    left = [unit for unit in units if unit.name not in done]
    if not left:
        return Step()
    if cluster["state"] not in ("serving", "degraded", "waiting"):
        return Step(wait_for=f"the group, which is {cluster['state']}")
    # No rank: -1, so first; then the highest rank.
    unit = min(left, key=lambda unit: (_rank(ours[unit.pid]) >= 0, -_rank(ours[unit.pid])))
    if _rank(ours[unit.pid]) < 0 or alone:
        return Step(restart=unit)
    standbys = [worker for worker in cluster["workers"] if worker["state"] == "standby"]
    if any(worker["phase"] == "loaded" for worker in standbys) or (standbys and quiet_s >= SETTLED_S):
        return Step(restart=unit)
    if standbys:
        return Step(wait_for=f"{standbys[0]['id']} to load what it may be given")
    return Step(
        wrong=f"{unit.name} holds rank {_rank(ours[unit.pid])} and no standby can take it: start one more worker, or "
        "give --without-spare, and streams wait for the restart of each rank"
    )


def _rank(worker: Mapping[str, Any]) -> int:
    return -1 if worker["rank"] is None else int(worker["rank"])


def operator_key(path: Path) -> str | None:
    """The first key of the file that may do operations; None without the file."""
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split("#")[0].split()
        if len(words) == 3 and "operations" in words[2].split(","):
            return words[0]
    raise SystemExit(f"error: {path} has no key with the role operations; give another --api-key-file")


def running_units(pattern: str) -> list[Unit]:
    """Units that are active, with the process that systemd takes for the main one."""
    listed = _systemctl("list-units", "--plain", "--no-legend", "--state=active", pattern)
    names = [line.split()[0] for line in listed.splitlines() if line]
    return [Unit(name, int(_systemctl("show", "--value", "--property=MainPID", name))) for name in names]


def _systemctl(*arguments: str) -> str:
    try:
        return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: systemctl {' '.join(arguments)}: {error.stderr.strip()}") from None


class Procedure:
    """The steps, carried out."""

    def __init__(self, client: Client, *, timeout_s: float, alone: bool) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._alone = alone

    def workers(self) -> None:
        """Restarts the workers of this machine."""
        done: frozenset[str] = frozenset()
        host, before, since = socket.gethostname(), None, time.monotonic()
        deadline = since + self._timeout_s
        while True:
            cluster, units = self._client.cluster(), running_units(WORKERS)
            if cluster["revision"] != before:
                before, since = cluster["revision"], time.monotonic()
            step = next_step(
                units, done, cluster, host=host, quiet_s=time.monotonic() - since, alone=self._alone
            )
            if step.wrong:
                raise SystemExit(f"error: {step.wrong}")
            if step.restart is not None:
                self._restart(step.restart.name)
                done |= {step.restart.name}
                deadline = time.monotonic() + self._timeout_s
            elif not step.wait_for:
                return
            elif time.monotonic() > deadline:
                raise SystemExit(
                    f"error: waited {self._timeout_s:g} s for {step.wait_for}; nothing more is restarted"
                )
            time.sleep(_LOOK_EVERY_S)

    def coordinator(self) -> None:
        """Restarts the coordinator, and waits until its group serves as before."""
        if not running_units(COORDINATOR):
            return
        serving = self._client.cluster()["state"] in ("serving", "degraded")
        self._restart(COORDINATOR)
        deadline = time.monotonic() + self._timeout_s
        while serving and self._state() not in ("serving", "degraded"):
            if time.monotonic() > deadline:
                raise SystemExit(f"error: the group does not serve again: {self._client.cluster()['groups']}")
            time.sleep(_LOOK_EVERY_S)

    def _state(self) -> str:
        try:
            return str(self._client.cluster()["state"])
        except RyzansteinError as error:  # it listens again soon
            return str(error)

    def _restart(self, unit: str) -> None:
        began_at = time.monotonic()
        _systemctl("restart", unit)  # returns when it is ready
        sys.stdout.write(f"restarted {unit} in {time.monotonic() - began_at:.1f} s\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--coordinator", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--api-key-file", type=Path, default=KEYS, metavar="FILE")
    parser.add_argument("--tls-ca-file", type=Path, metavar="FILE", help="encrypt, and check the coordinator")
    parser.add_argument(
        "--tls-cert-file", type=Path, metavar="FILE", help="this caller's own, for mutual TLS"
    )
    parser.add_argument("--tls-key-file", type=Path, metavar="FILE")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for each step")
    parser.add_argument("--without-spare", action="store_true", help="streams wait for each rank's restart")
    parser.add_argument("--workers-only", action="store_true")
    options = parser.parse_args()
    try:
        with Client(
            options.coordinator,
            api_key=operator_key(options.api_key_file),
            tls_ca_file=options.tls_ca_file,
            tls_cert_file=options.tls_cert_file,
            tls_key_file=options.tls_key_file,
        ) as client:
            procedure = Procedure(client, timeout_s=options.timeout, alone=options.without_spare)
            procedure.workers()
            if not options.workers_only:
                procedure.coordinator()
    except RyzansteinError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()

"""Two hosts on one machine: network namespaces joined by a cable that can be cut, whole or in part."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.cluster.harness import Program

#: Addresses of the two ends of the cable.
ADDRESSES = ("10.98.0.1", "10.98.0.2")


def missing() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip (iproute2) not found"
    probe = subprocess.run(
        ["ip", "netns", "add", f"rzprobe{os.getpid()}"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        return f"no network namespaces here: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", f"rzprobe{os.getpid()}"], check=True)
    return ""


@dataclass(frozen=True, slots=True)
class TwoHosts:
    """Names of two namespaces."""

    names: tuple[str, str]

    def run(self, host: int, *arguments: str, module: str, restarted: bool = False) -> Program:
        """Starts one of our programs on a host; `restarted`: again and again, as systemd does."""
        command = [sys.executable, "-m", module, *arguments]
        if restarted:
            command = ["sh", "-c", 'while :; do "$@"; sleep 0.2; done', "sh", *command]
        return Program(command=[*self.prefix(host), *command])

    def prefix(self, host: int) -> list[str]:
        """In front of a command that is to run on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def pull_the_plug(self) -> None:
        """Nothing passes any more."""
        self._ip(["link", "set", "rz0", "down"])

    def plug_in(self) -> None:
        self._ip(["link", "set", "rz0", "up"])

    def cut_ports(self, ports: Sequence[int]) -> None:
        """Packets from and to these TCP ports are lost; the rest passes."""
        for what in _selectors(ports):
            self._ip(["rule", "add", "priority", "20", *what, "type", "blackhole"])

    def cut_all_but(self, ports: Sequence[int]) -> None:
        """Packets from and to these TCP ports pass; the rest is lost."""
        for what in _selectors(ports):
            self._ip(["rule", "add", "priority", "10", *what, "lookup", "main"])
        self._ip(["rule", "add", "priority", "20", "to", "10.98.0.0/24", "type", "blackhole"])

    def heal(self) -> None:
        """Takes all cuts back."""
        for name in self.names:
            for priority in ("10", "20"):
                while (
                    subprocess.run(
                        ["ip", "-n", name, "rule", "delete", "priority", priority],
                        capture_output=True,
                        check=False,
                    ).returncode
                    == 0
                ):
                    pass

    def _ip(self, command: list[str]) -> None:
        for name in self.names:
            subprocess.run(["ip", "-n", name, *command], check=True)


def _selectors(ports: Sequence[int]) -> list[list[str]]:
    return [["ipproto", "tcp", side, str(port)] for port in ports for side in ("sport", "dport")]


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    """Two namespaces that see each other, and nothing else."""
    tag = uuid.uuid4().hex[:6]
    names = (f"rza{tag}", f"rzb{tag}")
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(
            [
                "ip",
                "link",
                "add",
                "rz0",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "rz0",
                "netns",
                names[1],
            ],
            check=True,
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            for what in (f"addr add {address}/24 dev rz0", "link set rz0 up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *what.split()], check=True)
        yield TwoHosts(names)
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)

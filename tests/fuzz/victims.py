"""Where the servers of a cluster under test listen."""

from __future__ import annotations

from pathlib import Path

import psutil

from ryzanstein.join_proof import JoinTokens

from ..cluster.harness import Cluster
from .campaign import Victims


def victims_of(cluster: Cluster, directory: Path) -> Victims:
    """`directory`: for a copy of the join token."""
    tokens = JoinTokens.from_file(cluster.join_token_file(directory))
    pids = [int(worker["pid"]) for worker in cluster.workers()]
    coordinator = next(child for child in cluster.children() if "coordinator" in child.cmdline())
    called = {c.raddr.port for c in coordinator.net_connections("tcp") if c.raddr}
    return Victims(cluster.grpc, tuple(_address_of(pid, called) for pid in pids), tokens)


def _address_of(pid: int, called: set[int]) -> str:
    """Where the coordinator calls this worker: gloo may listen too."""
    listening = {
        c.laddr.port for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN
    }
    (port,) = listening & called
    return f"127.0.0.1:{port}"

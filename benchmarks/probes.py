"""What a running cluster says about itself, as numbers."""

from __future__ import annotations

import psutil
from tests.cluster.harness import Cluster


def leader_steps(cluster: Cluster) -> tuple[float, float]:
    """Sum of seconds and count of the leader's steps so far."""
    text = cluster.get("/metrics")[1]

    def value(name: str) -> float:
        lines = [line for line in text.splitlines() if line.startswith(name) and 'rank="0"' in line]
        return float(lines[0].rsplit(" ", 1)[1])

    return value("ryzanstein_step_duration_seconds_sum"), value("ryzanstein_step_duration_seconds_count")


def coordinator_pid(cluster: Cluster) -> int:
    """Of the process that `serve` started."""
    children: list[psutil.Process] = cluster.children()
    return next(child.pid for child in children if "coordinator" in child.cmdline()[1:4])

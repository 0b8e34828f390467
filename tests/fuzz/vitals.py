"""What a cluster holds and answers, read from outside: before and after whatever is done to it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import psutil

from ryzanstein_client import Client

from ..cluster.harness import Cluster

_KV_USAGE = re.compile(r"^ryzanstein_kv_cache_usage_ratio(?:\{[^}]*\})? (\S+)$", re.MULTILINE)

#: What no line of the logs may hold.
_ALARMS = (
    "Traceback",
    '"level": "error"',
    '"level": "critical"',
    "[error",
    "[critical",
    "exception was never",
)

#: A connection of our own that gRPC has not closed yet, a thread of its pool.
_NOISE = 2

#: Connections that were just cut take a moment to be closed.
_SETTLE_S = 15.0


@dataclass(frozen=True, slots=True)
class Process:
    """What one process holds."""

    pid: int
    name: str
    fds: int
    threads: int
    rss_mib: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """Of a whole cluster at rest."""

    processes: tuple[Process, ...]
    #: Of two requests, one greedy and one sampled.
    tokens: tuple[tuple[int, ...], ...]
    #: While the same request was the only one.
    kv_usage: float
    epoch: int

    def __str__(self) -> str:
        each = (f"{p.name} {p.fds} fds {p.threads} threads {p.rss_mib:.0f} MiB" for p in self.processes)
        return f"epoch {self.epoch}, kv {self.kv_usage:.4f}: " + "; ".join(each)


def read_vitals(cluster: Cluster) -> Vitals:
    """Waits until nothing runs."""
    cluster.wait_for(
        lambda s: s["state"] == "serving" and s["requests"] == {"running": 0, "waiting": 0}, "it is at rest"
    )
    status, body = cluster.get("/health")
    assert status == 200, body
    # Before the calls below: their connection is closed by the servers a moment after the client's end.
    held = tuple(_process(child) for child in sorted(cluster.children(), key=lambda child: child.pid))
    with Client(cluster.grpc) as client:
        greedy = client.generate("Q: What is 347 + 285?\nA:", max_tokens=40, temperature=0.0, ignore_eos=True)
        drawn = client.generate("Once", max_tokens=64, temperature=1.1, seed=7, ignore_eos=True)
    _, metrics = cluster.get("/metrics")
    usage = max(map(float, _KV_USAGE.findall(metrics)))
    return Vitals(
        held,
        (tuple(greedy.token_ids), tuple(drawn.token_ids)),
        usage,
        int(cluster.snapshot()["epoch"]),
    )


def _process(process: psutil.Process) -> Process:
    words = process.cmdline()
    name = next(
        (word for word in words if word in ("coordinator", "shard-worker")), words[-1] if words else "?"
    )
    memory = process.memory_info().rss / 2**20
    return Process(process.pid, name, process.num_fds(), process.num_threads(), memory)


def harm(before: Vitals, cluster: Cluster, log_from: int, *, most_growth_mib: float) -> list[str]:
    """What is worse than before: empty, or in words. Waits a while for what is being closed."""
    found = [
        line.strip()[:500]
        for line in cluster.stderr_lines[log_from:]
        if any(word in line for word in _ALARMS)
    ]
    found = [f"logged: {line}" for line in found[:20]]
    deadline = time.monotonic() + _SETTLE_S
    while True:
        after = read_vitals(cluster)
        worse = _worse(before, after, most_growth_mib)
        if not worse or time.monotonic() > deadline:
            return found + worse
        time.sleep(0.2)


def _worse(before: Vitals, after: Vitals, most_growth_mib: float) -> list[str]:
    found = []
    if after.tokens != before.tokens:
        found.append(f"other tokens: {before.tokens} became {after.tokens}")
    if after.kv_usage > before.kv_usage:
        found.append(f"pages are not free: {before.kv_usage} of them became {after.kv_usage}")
    if after.epoch != before.epoch:
        found.append(f"epoch {before.epoch} became {after.epoch}")
    if [one.pid for one in after.processes] != [one.pid for one in before.processes]:
        return [*found, f"other processes: {before} became {after}"]
    for old, new in zip(before.processes, after.processes, strict=True):
        if new.fds > old.fds + _NOISE:
            found.append(f"{new.name} {new.pid}: {old.fds} fds became {new.fds}")
        if new.threads > old.threads + _NOISE:
            found.append(f"{new.name} {new.pid}: {old.threads} threads became {new.threads}")
        if new.rss_mib > old.rss_mib + most_growth_mib:
            found.append(f"{new.name} {new.pid}: {old.rss_mib:.0f} MiB became {new.rss_mib:.0f} MiB")
    return found

"""The coordinator is killed again and again under load: how long until every stream goes on.

python -m tests.reliability.coordinator_kills --kills 20 --streams 24

A stream can't go on before there is a coordinator: its start is measured beside the stalls, from the kill until the
gRPC port takes a connection.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.harness import BUNDLED_MODEL, Cluster

from .chaos import disturbed_cluster
from .traffic import Traffic


@dataclass(frozen=True, slots=True)
class CoordinatorKill:
    """One kill. Seconds since it."""

    started_s: float
    median_stall_s: float
    worst_stall_s: float


def kill(cluster: Cluster, traffic: Traffic) -> CoordinatorKill:
    """`kill -9`; returns when all streams flow again."""
    victim = next(p for p in cluster.children() if "coordinator" in p.cmdline())
    epoch = cluster.snapshot()["epoch"]
    struck_at = time.monotonic()
    victim.kill()
    victim.wait(10)
    host, _, port = cluster.grpc.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < struck_at + 60, "no coordinator came back"
            time.sleep(0.005)
    started_s = time.monotonic() - struck_at
    cluster.wait_for(lambda s: s["state"] == "serving" and s["epoch"] > epoch, "it serves again", 60)
    traffic.wait_for_flow()
    stalls = traffic.stalls_s(struck_at)
    return CoordinatorKill(started_s, statistics.median(stalls), max(stalls))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--streams", type=int, default=24)
    options = parser.parse_args()
    kills: list[CoordinatorKill] = []
    with (
        tempfile.TemporaryDirectory(prefix="ryzanstein-chaos-") as state_dir,
        disturbed_cluster(
            Path(state_dir), "--dtype", options.dtype, model=options.model, streams=options.streams, spares=0
        ) as (cluster, traffic, _),
    ):
        for number in range(options.kills):
            if number:
                time.sleep(6.0)  # a program that ends sooner after its start is started again more slowly
            each = kill(cluster, traffic)
            kills.append(each)
            print(
                f"{len(kills):4} listens after {1000 * each.started_s:.0f} ms, "
                f"last stream {1000 * each.worst_stall_s:.0f} ms",
                flush=True,
            )
    for name in ("started_s", "median_stall_s", "worst_stall_s"):
        values = [1000 * getattr(each, name) for each in kills]
        print(f"{name}: median {statistics.median(values):.0f} ms, worst {max(values):.0f} ms")
    later = [1000 * (each.worst_stall_s - each.started_s) for each in kills]
    print(
        f"last stream after the coordinator's start: median {statistics.median(later):.0f} ms, "
        f"worst {max(later):.0f} ms; {traffic.finished} requests compared, {traffic.tokens} tokens"
    )


if __name__ == "__main__":
    main()

"""Kill after kill under load, and what each one cost. The suite runs a few; `make chaos` a hundred.

python -m tests.reliability.chaos --kills 100 --streams 24 --json FILE
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.cluster.harness import BUNDLED_MODEL, Cluster

from .faults import Failpoints
from .traffic import Traffic, sampled_requests
from .watching import Footprint, HealthWatch


@dataclass(frozen=True, slots=True)
class Kill:
    """One fault. Times in seconds; those of the coordinator count from the fault's first sign."""

    rank: int
    worker_id: str
    #: Of the stream that waited longest, and of the middle one.
    worst_stall_s: float
    median_stall_s: float
    #: How long /health said 200 while nothing could be generated; how often it did not while tokens flowed.
    falsely_well_s: float
    falsely_ill: int
    cause: str
    detected_s: float
    fenced_s: float
    reformed_s: float
    first_token_s: float
    requests_resumed: int
    #: What is wrong with the report of who failed, if anything.
    misreported: str = ""


@contextmanager
def disturbed_cluster(
    state_dir: Path,
    *flags: str,
    model: Path = BUNDLED_MODEL,
    streams: int = 24,
    spares: int = 1,
    size: int = 2,
    failpoints: Path | None = None,
    health_every_s: float = 0.005,
) -> Iterator[tuple[Cluster, Traffic, HealthWatch]]:
    """A cluster under load, watched. Fails at the end if any token of any stream was wrong."""
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    requests = sampled_requests(streams + 8, seed=7, vocab_size=vocab_size)
    flags = ("--spares", str(spares), *flags)
    with Cluster(state_dir, model, *flags, tensor_parallel_size=size, failpoints=failpoints) as cluster:
        cluster.ready(120)
        wait_for_spares(cluster, spares)
        with (
            HealthWatch(cluster.http, health_every_s) as health,
            Traffic(cluster.grpc, requests, streams=streams) as traffic,
        ):
            traffic.wait_for_flow()
            yield cluster, traffic, health
            traffic.wait_for_flow()
        assert not traffic.failures, traffic.failures
        assert traffic.finished, "no request was compared to its end"


def wait_for_spares(cluster: Cluster, spares: int) -> None:
    """Until the group serves and all spares hold a shard."""

    def whole(snapshot: dict[str, Any]) -> bool:
        ready = [w for w in snapshot["workers"] if w["state"] == "standby" and w["load_progress"] == 1.0]
        return snapshot["state"] == "serving" and len(ready) >= spares

    cluster.wait_for(whole, f"{spares} spares hold a shard", 60)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is done to a rank."""

    #: SIGKILL, or SIGSTOP: then SIGCONT follows when the group stands again without it.
    signal: signal.Signals = signal.SIGKILL
    #: Memory that it takes before.
    resident_gib: float = 0.0
    failpoints: Failpoints | None = None

    def prepare(self, worker: dict[str, Any]) -> None:
        """Makes the rank as large as wanted, while it goes on."""
        if not self.resident_gib or self.failpoints is None:
            return
        process = psutil.Process(worker["pid"])
        wanted_bytes = process.memory_info().rss + self.resident_gib * 2**30 * 0.95
        self.failpoints.arm("step.decode", worker["id"], f"hold {self.resident_gib}")
        deadline = time.monotonic() + 180
        while (resident_bytes := process.memory_info().rss) < wanted_bytes:
            assert time.monotonic() < deadline, (
                f"{worker['id']} takes no {self.resident_gib} GiB: {resident_bytes / 2**30:.1f} GiB are resident"
            )
            time.sleep(0.05)

    def strike(self, worker: dict[str, Any]) -> float:
        """Returns the moment of it."""
        process = psutil.Process(worker["pid"])
        struck_at = time.monotonic()
        process.send_signal(self.signal)
        return struck_at


def strike(
    cluster: Cluster, traffic: Traffic, health: HealthWatch, rank: int, fault: Fault | None = None
) -> Kill:
    """`kill -9` (or another fault) of one rank in the midst of the streams; returns when they flow again."""
    fault = fault or Fault()
    victim = cluster.workers()[rank]
    fault.prepare(victim)
    traffic.wait_for_flow()
    epoch = cluster.snapshot()["epoch"]
    calm_since = time.monotonic()  # all streams flow: the recovery before this one is over
    time.sleep(0.3)
    struck_at = fault.strike(victim)
    snapshot = cluster.wait_for(
        lambda s: (
            s["epoch"] > epoch and s["last_recovery"] and s["last_recovery"]["first_token_s"] is not None
        ),
        "tokens of the next epoch",
    )
    traffic.wait_for_flow()
    if fault.signal == signal.SIGSTOP:
        psutil.Process(victim["pid"]).send_signal(signal.SIGCONT)
    stalls = traffic.stalls_s(struck_at)
    recovery = snapshot["last_recovery"]
    # From here on a request that is sent is generated, behind those that are replayed: 200 is right again.
    again_at = traffic.first_token_at(struck_at + recovery["reformed_s"])
    stands_at = again_at - (recovery["first_token_s"] - recovery["reformed_s"])
    culprit = recovery["culprit"] or {}
    named = (culprit.get("worker_id"), culprit.get("rank"), culprit.get("pid"), recovery["cause"])
    wanted = (victim["id"], rank, victim["pid"], "process" if fault.signal == signal.SIGKILL else "lease")
    time.sleep(0.1)
    return Kill(
        rank=rank,
        worker_id=victim["id"],
        worst_stall_s=max(stalls),
        median_stall_s=statistics.median(stalls),
        falsely_well_s=health.falsely_well_s(struck_at, stands_at),
        falsely_ill=health.falsely_ill(calm_since, struck_at)
        + health.falsely_ill(struck_at + max(stalls), time.monotonic()),
        cause=recovery["cause"],
        detected_s=recovery["detected_s"],
        fenced_s=recovery["fenced_s"],
        reformed_s=recovery["reformed_s"],
        first_token_s=recovery["first_token_s"],
        requests_resumed=recovery["requests_resumed"],
        misreported="" if named == wanted else f"{named} instead of {wanted}",
    )


def kills_in_a_row(
    cluster: Cluster,
    traffic: Traffic,
    health: HealthWatch,
    count: int,
    *,
    spares: int,
    seed: int = 1,
    fault: Fault | None = None,
) -> Iterator[Kill]:
    """Strikes one rank after another, each time when all places are filled again."""
    draw = random.Random(seed)
    for _ in range(count):
        wait_for_spares(cluster, spares)
        traffic.wait_for_flow()
        yield strike(cluster, traffic, health, draw.randrange(len(cluster.workers())), fault)


def summary(kills: list[Kill]) -> dict[str, float]:
    """Medians and worst cases, in milliseconds."""

    def figures(name: str) -> tuple[float, float]:
        values = [1000 * getattr(each, name) for each in kills]
        return round(statistics.median(values), 1), round(max(values), 1)

    result: dict[str, float] = {"kills": len(kills)}
    for name in (
        "worst_stall_s",
        "median_stall_s",
        "falsely_well_s",
        "detected_s",
        "fenced_s",
        "reformed_s",
        "first_token_s",
    ):
        label = name.removesuffix("_s")
        result[f"{label}_ms_median"], result[f"{label}_ms_worst"] = figures(name)
    result["falsely_ill"] = sum(each.falsely_ill for each in kills)
    result["misreported"] = sum(bool(each.misreported) for each in kills)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--spares", type=int, default=1)
    parser.add_argument("--tensor-parallel-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--fault", choices=["kill", "stop"], default="kill")
    parser.add_argument(
        "--health-every", type=float, default=0.005, help="seconds; each costs processor time"
    )
    parser.add_argument(
        "--resident-gib", type=float, default=0.0, help="memory that a rank takes before its fault"
    )
    parser.add_argument("--calm-minutes", type=float, default=0.0, help="before: nothing may be suspected")
    parser.add_argument("--json", type=Path, help="where to write every kill")
    options = parser.parse_args()
    kills: list[Kill] = []
    points = Failpoints(Path(tempfile.mkdtemp(prefix="ryzanstein-failpoints-")))
    number = signal.SIGKILL if options.fault == "kill" else signal.SIGSTOP
    fault = Fault(number, options.resident_gib, points)
    with (
        tempfile.TemporaryDirectory(prefix="ryzanstein-chaos-") as state_dir,
        disturbed_cluster(
            Path(state_dir),
            "--dtype",
            options.dtype,
            model=options.model,
            streams=options.streams,
            spares=options.spares,
            size=options.tensor_parallel_size,
            failpoints=points.directory,
            health_every_s=options.health_every,
        ) as (cluster, traffic, health),
    ):
        coordinator = next(p for p in cluster.children() if "coordinator" in p.cmdline())
        before = Footprint.of(coordinator.pid)
        if options.calm_minutes:
            epoch, tokens = cluster.snapshot()["epoch"], traffic.tokens
            time.sleep(60 * options.calm_minutes)
            ill = sum(status != 200 for _, _, status in health.answers)
            alarms = cluster.snapshot()["epoch"] - epoch
            print(
                f"{options.calm_minutes:g} calm minutes: {alarms} false alarms, /health said no {ill} times in "
                f"{len(health.answers)}, {traffic.tokens - tokens} tokens, {traffic.finished} requests compared; "
                f"coordinator: {Footprint.of(coordinator.pid).growth_over(before) or 'no growth'}",
                flush=True,
            )
        for each in kills_in_a_row(
            cluster, traffic, health, options.kills, spares=options.spares, seed=options.seed, fault=fault
        ):
            kills.append(each)
            print(
                f"{len(kills):4} rank {each.rank} {each.worker_id:10} longest stall "
                f"{1000 * each.worst_stall_s:6.0f} ms, "
                f"reformed {1000 * each.reformed_s:5.0f} ms, {each.requests_resumed} resumed"
                + (f"  MISREPORTED {each.misreported}" if each.misreported else ""),
                flush=True,
            )
            if traffic.failures:
                break
        grown = Footprint.of(coordinator.pid).growth_over(before)
    if not kills:
        return 0
    figures = summary(kills)
    print(json.dumps(figures, indent=2))
    print(
        f"{traffic.finished} requests compared, {traffic.tokens} tokens; coordinator: {grown or 'no growth'}"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"summary": figures, "kills": [asdict(k) for k in kills]}, indent=2)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

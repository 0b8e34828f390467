"""How much one coordinator bears on one core: workers that beat, streams that are open, tokens that pass.

    python -m benchmarks.coordinator [--workers 1000] [--beats-hz 2] [--streams 2000] [--tokens-per-s 10000]
                                     [--seconds 20] [--json FILE]

The coordinator is the real program with its servers, log and metrics, held on the first processor. Workers and clients
are two processes on the others: nothing is computed, all is said. Each token tells when its worker made it, so that the
time until a client has it is known.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from tests.cluster.harness import BUNDLED_MODEL, Program

from .coordinator_load import CountingClients, TalkingWorkers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--beats-hz", type=float, default=2.0)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--tokens-per-s", type=float, default=10_000.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    first, *others = sorted(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="ryzanstein-coordinator-") as state_dir, Program(
        "coordinator", str(BUNDLED_MODEL), "--tensor-parallel-size", "1", "--spares", "0", "--grpc-port", "0",
        "--http-port", "0", "--state-dir", state_dir, "--max-num-seqs", str(options.streams),
    ) as coordinator:  # fmt: skip
        os.sched_setaffinity(coordinator.process.pid, {first})
        os.sched_setaffinity(0, set(others or [first]))  # what this process starts inherits it
        coordinator.wait_for_log("listening")
        address = coordinator.stderr.partition("grpc=")[2].split()[0]
        ours, theirs = context.Pipe()
        workers = context.Process(
            target=_workers,
            args=(address, options.workers, options.beats_hz, options.tokens_per_s),
            daemon=True,
        )
        clients = context.Process(
            target=_clients, args=(address, options.streams, options.seconds, theirs), daemon=True
        )
        workers.start()
        coordinator.line(120)
        clients.start()
        process = psutil.Process(coordinator.process.pid)
        assert ours.recv() == "all open"
        before, begun_s = process.cpu_times(), time.monotonic()
        found = ours.recv()
        passed_s, after = time.monotonic() - begun_s, process.cpu_times()
        found |= {
            "workers": options.workers,
            "processor_share": (after.user + after.system - before.user - before.system) / passed_s,
            "resident_mib": process.memory_info().rss / 2**20,
            "workers_lost": coordinator.stderr.count('"state": "lost"'),
        }
        for child in (clients, workers):
            child.kill()
            child.join()
    _show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _workers(address: str, count: int, beats_hz: float, tokens_per_s: float) -> None:
    asyncio.run(TalkingWorkers(tokens_per_s).run(address, count, beats_hz))


def _clients(address: str, streams: int, seconds: float, pipe: Connection) -> None:
    asyncio.run(_count(address, streams, seconds, pipe))


async def _count(address: str, streams: int, seconds: float, pipe: Connection) -> None:
    clients = CountingClients(address, streams)
    reading = asyncio.create_task(clients.run())
    await clients.all_open.wait()
    await asyncio.sleep(2.0)
    clients.reset()
    pipe.send("all open")
    used, begun_s = psutil.Process().cpu_times(), time.monotonic()
    await asyncio.sleep(seconds)
    passed_s, late_ms, now = time.monotonic() - begun_s, sorted(clients.late_ms), psutil.Process().cpu_times()
    pipe.send(
        {
            "streams": streams - len(clients.failures),
            "failures": clients.failures[:3],
            "tokens_per_s": len(late_ms) / passed_s,
            "late_ms_median": statistics.median(late_ms) if late_ms else None,
            "late_ms_p99": late_ms[len(late_ms) * 99 // 100] if late_ms else None,
            "clients_processor_share": (now.user + now.system - used.user - used.system) / passed_s,
        }
    )
    reading.cancel()


def _show(found: dict[str, object]) -> None:
    print(
        f"{found['workers']} workers, {found['streams']} streams: {found['tokens_per_s']:.0f} tokens/s passed on, "
        f"median {found['late_ms_median']} ms, p99 {found['late_ms_p99']} ms after they were made\n"
        f"the coordinator took {found['processor_share']:.2f} of a processor and {found['resident_mib']:.0f} MiB, its "
        f"clients {found['clients_processor_share']:.2f}; {found['workers_lost']} workers lost"
    )
    if found["failures"]:
        print("failures, for example:", *found["failures"], sep="\n  ")  # type: ignore[misc]


if __name__ == "__main__":
    main()

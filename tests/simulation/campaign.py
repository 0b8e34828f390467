"""Many schedules on all processors."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
from collections.abc import Iterator

import structlog

from .schedule import run_seed

_BATCH = 100


def run_batch(seeds: range) -> tuple[int, list[tuple[int, tuple[str, ...], tuple[str, ...]]]]:
    """How many ran, and of those that failed: seed, violations, trace."""
    failed = []
    for seed in seeds:
        outcome = run_seed(seed)
        if outcome.violations:
            failed.append((seed, outcome.violations, outcome.trace))
    gc.collect()
    return len(seeds), failed


def prepare() -> None:
    """A schedule leaves circles behind: collecting them once per batch is twice as fast as all the time. Calls among
    them end only then, and say so."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    run_seed(0)
    gc.collect()
    gc.freeze()
    gc.disable()


def batches(seed: int, schedules: int) -> Iterator[range]:
    for first in range(seed, seed + schedules, _BATCH):
        yield range(first, min(first + _BATCH, seed + schedules))


def run_all(seed: int, schedules: int, processes: int, most_failures: int) -> int:
    """Exit code: 0 if none failed."""
    begun_s, ran, failures, told_s = time.monotonic(), 0, 0, 0.0
    with multiprocessing.get_context("spawn").Pool(processes, prepare) as pool:
        for count, failed in pool.imap_unordered(run_batch, batches(seed, schedules)):
            ran += count
            for failed_seed, violations, trace in failed:
                failures += 1
                if failures <= most_failures:
                    print("\r", end="")
                    print(*trace[-60:], f"seed {failed_seed} fails:", *violations, sep="\n")
                    print(f"replay: python -m tests.simulation --replay {failed_seed}", flush=True)
            seconds = time.monotonic() - begun_s
            if seconds - told_s > 1.0 or ran == schedules:
                told_s = seconds
                print(
                    f"\r{ran} of {schedules} schedules, {ran / seconds:.0f}/s, {failures} failed",
                    end="",
                    flush=True,
                )
            if failures >= most_failures:
                pool.terminate()
                break
    print()
    return 1 if failures else 0

"""The command line that every runner has: the parent starts it with the peer's Python and reads the file it writes."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..measure import Engine, Plan, measure


def run(start: Callable[[argparse.Namespace], Engine], prepare: Callable[[argparse.Namespace], None]) -> None:
    """Parses, then converts the checkpoint, or measures.

    Args:
        start: loads the model and returns the engine when it can generate.
        prepare: writes what the engine reads in place of the checkpoint to `converted`; called only if it is not there.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument(
        "--converted", type=Path, required=True, help="what the engine reads, if not the checkpoint"
    )
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, required=True, help="of all ranks together")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--plan", type=json.loads, default={})
    parser.add_argument("--spawned-at", type=float, help="time.monotonic() of whoever started this process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.prepare:
        prepare(options)
        return
    engine = start(options)
    start_s = time.monotonic() - options.spawned_at
    plan = Plan(**{**options.plan, "streams": tuple(options.plan["streams"])})
    figures = measure(engine, plan, start_s)
    if os.environ.get("RANK", "0") == "0":  # the others that torchrun started compute the same
        options.out.write_text(json.dumps(asdict(figures)))


def nothing_to_prepare(options: argparse.Namespace) -> None:
    """For an engine that reads the checkpoint as it is."""


def cores(rank: int, ranks: int) -> set[int]:
    """The share of this machine's processors that one rank gets."""
    available = sorted(os.sched_getaffinity(0))
    share = max(1, len(available) // ranks)
    return set(available[rank * share : (rank + 1) * share])

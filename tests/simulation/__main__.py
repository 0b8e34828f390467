"""`python -m tests.simulation --schedules 1000000`: many schedules on all processors; a failure names its seed.

`--replay SEED` runs one with its trace.
"""

from __future__ import annotations

import argparse
import os
import sys

from .campaign import run_all
from .plan import plan_of
from .schedule import run_plan


def replay(seed: int) -> int:
    """One schedule with its trace."""
    outcome = run_plan(plan_of(seed), traced=True)
    print(*outcome.trace, *outcome.violations, sep="\n")
    return 1 if outcome.violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--most-failures", type=int, default=5, help="then it stops")
    parser.add_argument("--replay", type=int, metavar="SEED")
    given = parser.parse_args()
    if given.replay is not None:
        return replay(given.replay)
    return run_all(given.seed, given.schedules, given.processes, given.most_failures)


if __name__ == "__main__":
    sys.exit(main())

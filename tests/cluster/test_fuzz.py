"""A few hundred calls that nobody meant: see tests/fuzz, whose long form is `python -m tests.fuzz --minutes 10`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ..fuzz.campaign import run_campaign
from ..fuzz.victims import victims_of
from ..fuzz.vitals import harm, read_vitals
from .harness import Cluster

SEED = 20260101


def test_calls_that_nobody_meant_neither_fail_inside_nor_leave_anything_behind(
    two_ranks: Cluster, tmp_path: Path
) -> None:
    victims = victims_of(two_ranks, tmp_path)
    asyncio.run(run_campaign(victims, SEED + 1, most_cases=50, most_s=10.0))
    before, log_from = read_vitals(two_ranks), len(two_ranks.stderr_lines)

    result = asyncio.run(run_campaign(victims, SEED, most_cases=300, most_s=10.0))

    assert result.defects == []
    assert {"OK", "INVALID_ARGUMENT", "UNAUTHENTICATED", "NOT_FOUND", "CANCELLED"} <= set(result.statuses)
    assert harm(before, two_ranks, log_from, most_growth_mib=32.0) == []

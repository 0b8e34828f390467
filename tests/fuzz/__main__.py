"""`python -m tests.fuzz --minutes 10`: see the package. Exit code 1 if anything was found."""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from ..cluster.harness import Cluster
from .campaign import run_campaign
from .victims import victims_of
from .vitals import harm, read_vitals
from .warming import touch_cache

#: Calls after which everything that grows only once has grown.
_WARM_UP = 1500
#: The coordinator remembers ended requests for a while, and the allocator keeps what it freed.
_MOST_GROWTH_MIB = 96.0


def main() -> int:
    """Prints what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the cases")
    parser.add_argument(
        "--schemathesis",
        metavar="PROGRAM",
        help="fuzz HTTP with this program, of an environment of its own, in the place of gRPC",
    )
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        Cluster(Path(directory) / "state") as cluster,
    ):
        cluster.ready(180)
        victims = victims_of(cluster, Path(directory))
        print(f"cache used once: {touch_cache(cluster)} tokens", flush=True)
        asyncio.run(run_campaign(victims, asked.seed + 1, most_cases=_WARM_UP, most_s=60.0))
        before, log_from = read_vitals(cluster), len(cluster.stderr_lines)
        print(f"before: {before}", flush=True)
        if asked.schemathesis:
            found = _schemathesis(asked.schemathesis, cluster.http, asked.minutes * 60, asked.seed)
        else:
            most_s = asked.minutes * 60
            result = asyncio.run(run_campaign(victims, asked.seed, most_cases=2**62, most_s=most_s))
            print(result)
            found = result.defects
        found = found + harm(before, cluster, log_from, most_growth_mib=_MOST_GROWTH_MIB)
        print(f"after: {read_vitals(cluster)}")
    for line in found:
        print(f"FOUND {line}")
    return 1 if found else 0


#: What the page can't say or the server does not want: whether a request is good depends on the model too (the roles of
#: its template, its vocabulary, its length), and a number in place of a bool or text is taken for what it means.
_LEFT_OUT = "positive_data_acceptance,negative_data_rejection"

#: The longest that the page allows (128 choices of a whole context, echoed) may take on a busy machine.
_ANSWER_S = 300


def _schemathesis(program: str, http: str, seconds: float, seed: int) -> list[str]:
    """All its other checks: no 5xx, and only statuses, content types and bodies that the page knows."""
    command = [program, "run", f"{http}/openapi.json", "--exclude-checks", _LEFT_OUT, "--continue-on-failure"]
    command += ["--max-time", str(int(seconds)), "--seed", str(seed), "--workers", "2"]
    # Its own 10 s are fewer than a whole answer of many choices takes; that one comes at all is checked.
    command += ["--request-timeout", str(_ANSWER_S)]
    code = subprocess.run(command, check=False).returncode
    return [f"{' '.join(command)} ended with {code}"] if code else []


sys.exit(main())

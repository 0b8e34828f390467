"""Runs the parts and writes the report, anew after each part: a run that is cut off leaves what it has.

    python -m tools.gpu_check --report gpu-report [--device cpu] [--only tests engine]

Exit code 0 when all parts passed, else 1; 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from .machine import describe_machine
from .parts import Outcome, parts, run
from .report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--report", type=Path, default=Path("gpu-report"), help="directory for report.md and .json"
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses with a tiny model"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[part.name for part in parts("cuda")], help="parts to run"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} finds no NVIDIA GPU here", file=sys.stderr)
        sys.exit(2)
    options.report.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    chosen = [part for part in parts(options.device) if not options.only or part.name in options.only]
    outcomes: list[Outcome] = []
    write_report(options.report, machine, outcomes, [part.name for part in chosen])
    for number, part in enumerate(chosen):
        print(f"{part.name}: {part.command}", flush=True)
        outcome = run(part, options.report / f"{part.name}.log")
        outcomes.append(outcome)
        write_report(options.report, machine, outcomes, [left.name for left in chosen[number + 1 :]])
        print(outcome.output.rstrip(), flush=True)
        print(f"{part.name}: {outcome.reason or 'passed'}, {outcome.seconds:.0f} s", flush=True)
    print(f"report: {options.report / 'report.md'}")
    sys.exit(0 if all(outcome.passed for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()

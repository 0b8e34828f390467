"""The parts of the check: each a program of its own with a time limit, whose failure does not stop the others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .requirements import ROOT

_TAIL_CHARACTERS = 4000


@dataclass(frozen=True, slots=True)
class Part:
    """One program. `{result}` in its arguments stands for the file that it writes."""

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    #: "junit" or "json": of the file.
    writes: str
    #: Tests that all skip prove nothing; only a rehearsal without a GPU may.
    may_skip_all: bool = False

    @property
    def command(self) -> str:
        """To be shown and repeated: without the result file."""
        shown = [word for word in self.arguments if "{result}" not in word and word != "--json"]
        return " ".join(["python", "-m", *shown])


@dataclass(frozen=True, slots=True)
class Case:
    """One test."""

    name: str
    #: "passed", "failed", "error" or "skipped".
    outcome: str
    seconds: float
    message: str = ""
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part."""

    name: str
    command: str
    passed: bool
    seconds: float
    #: Why it did not pass; empty if it did.
    reason: str
    #: Of a benchmark: what it wrote. Of the tests: empty.
    data: Any
    cases: tuple[Case, ...]
    #: The end of what it printed.
    output: str


def parts(device: str) -> list[Part]:
    """All of them, for "cuda", or for a rehearsal on the "cpu" with a tiny model."""
    real = device == "cuda"
    tests = ("pytest", "tests/gpu", "-W", "default", "-p", "no:cacheprovider", "--junitxml={result}")
    engine: tuple[str, ...] = (
        "benchmarks.engine",
        "--device",
        "cuda:0" if real else "cpu",
        "--json",
        "{result}",
    )
    loading: tuple[str, ...] = (
        "benchmarks.loading",
        "--device",
        "cuda:0" if real else "cpu",
        "--json",
        "{result}",
    )
    cluster: tuple[str, ...] = (
        "benchmarks.cluster",
        "--device",
        device,
        "--ranks",
        "1",
        "--json",
        "{result}",
    )
    if not real:
        engine += (
            "--shape",
            "tiny",
            "--streams",
            "1",
            "8",
            "--context",
            "64",
            "--steps",
            "16",
            "--prefill",
            "1x64",
            "--as-gpu",
        )
        loading += ("--shape", "tiny")
        bundled = ROOT / "coordinator" / "ryzanstein_coordinator" / "bundled_model"
        cluster += ("--model", str(bundled.relative_to(ROOT)), "--streams", "1", "8", "--repeats", "1")
    # The same steps, launched one by one: what graphs are worth.
    eager = (*engine, "--cuda-graphs", "off")
    peer: tuple[str, ...] = (
        "benchmarks.gpu_peer",
        "--device",
        "cuda:0" if real else "cpu",
        "--json",
        "{result}",
    )
    if not real:
        peer += ("--shape", "tiny", "--streams", "1", "4", "--context", "64", "--steps", "8")
    return [
        Part("tests", tests, 900.0, "junit", may_skip_all=not real),
        Part("engine", engine, 300.0, "json"),
        Part("engine_without_graphs", eager, 300.0, "json"),
        Part("engine_in_8_bits", (*engine, "--quantization", "fp8"), 300.0, "json"),
        Part("peer", peer, 400.0, "json"),
        Part("loading", loading, 240.0, "json"),
        Part("cluster", cluster, 300.0, "json"),
    ]


def run(part: Part, log: Path) -> Outcome:
    """Runs it with this interpreter, its output to `log`; kills it with all its children at its limit."""
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, log.open("wb") as output:
        result = Path(directory) / "result"
        arguments = [word.format(result=result) for word in part.arguments]
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        reason = ""
        try:
            code = process.wait(part.limit_s)
            if code:
                reason = f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            reason = f"did not end within {part.limit_s:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        data: Any = None
        cases: tuple[Case, ...] = ()
        if result.is_file() and part.writes == "json":
            data = json.loads(result.read_text())
        elif result.is_file():
            cases = read_cases(result)
        elif not reason:
            reason = "wrote no result"
    if cases and not reason and not part.may_skip_all and all(case.outcome == "skipped" for case in cases):
        reason = "every test was skipped"
    return Outcome(
        name=part.name,
        command=part.command,
        passed=not reason,
        seconds=time.monotonic() - started_at,
        reason=reason,
        data=data,
        cases=cases,
        output=log.read_text(errors="replace")[-_TAIL_CHARACTERS:],
    )


def read_cases(path: Path) -> tuple[Case, ...]:
    """The tests of a JUnit file that pytest wrote."""
    cases = []
    for element in ElementTree.parse(path).getroot().iter("testcase"):
        outcome, message = "passed", ""
        for tag, name in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
            found = element.find(tag)
            if found is not None:
                outcome, message = name, found.get("message", "")
        properties = {
            item.get("name", ""): item.get("value", "") for item in element.iterfind("properties/property")
        }
        module = element.get("classname", "").removeprefix("tests.gpu.")
        name = f"{module}::{element.get('name')}"
        cases.append(Case(name, outcome, float(element.get("time", 0)), message, properties))
    return tuple(cases)

"""Ryzanstein and a peer in turn, round by round, and what follows from it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ryzanstein.measuring.machine import MachineState, MachineWatch

from .catalog import Peer, Variant
from .environment import PeerError, environment
from .measure import Figures, Plan


@dataclass(frozen=True)
class Comparison:
    """One variant of one peer. Figures stand in the order in which they were taken: ours, theirs, ours, theirs …"""

    peer: str
    version: str
    variant: str
    weights: str
    our_ranks: int
    peer_ranks: int
    ours: list[Figures]
    theirs: list[Figures]
    #: Of every round, ours and theirs in turn, with a probe of the memory before and after each.
    machine: list[MachineState]

    def medians(self) -> tuple[Figures, Figures]:
        return _median(self.ours), _median(self.theirs)

    def ratios(self) -> Figures:
        """How many times as good we are, above 1 is better: the median over the rounds' own ratios."""
        rounds = [_ratio(ours, theirs) for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return _median(rounds)


def compare(
    peer: Peer,
    version: str,
    variant: Variant,
    ours: Callable[[], Figures],
    theirs: Callable[[], Figures],
    *,
    our_ranks: int,
    rounds: int,
) -> Comparison:
    """A-B-A-B, each with a probe of the memory before and after."""
    machine: list[MachineState] = []
    taken: tuple[list[Figures], list[Figures]] = ([], [])
    for _ in range(rounds):
        for engine, list_of in zip((ours, theirs), taken, strict=True):
            watch = MachineWatch(our_ranks)
            list_of.append(engine())
            machine.append(watch.state())
    return Comparison(
        peer.name, version, variant.name, variant.weights, our_ranks, variant.ranks, *taken, machine
    )


def prepared(peer: Peer, variant: Variant, python: Path, model: Path, work: Path) -> Path:
    """What the peer reads: the checkpoint, or that converted (once)."""
    if peer.converted_suffix is None:
        return model
    converted = work / f"{model.name}-{peer.name}-{variant.weights}{peer.converted_suffix}"
    if not converted.exists():
        print(f"converting {model} for {peer.name}, {variant.weights}", file=sys.stderr, flush=True)
        _run([*_command(peer, variant, python, model, converted, 1, ("-m",)), "--prepare"])
    return converted


def peer_round(
    peer: Peer,
    variant: Variant,
    python: Path,
    model: Path,
    converted: Path,
    plan: Plan,
    work: Path,
    threads: int,
) -> Figures:
    """A new process (or one per rank) that loads, measures and ends. The start counts from the command."""
    out = work / f"{peer.name}-{variant.name}.json"
    out.unlink(missing_ok=True)
    launcher = (*peer.launcher, str(variant.ranks)) if len(peer.launcher) > 1 and variant.ranks > 1 else ()
    launcher = (*launcher, "-m") if launcher else ("-m",)
    command = _command(peer, variant, python, model, converted, threads, launcher)
    command += ["--plan", json.dumps(asdict(plan)), "--out", str(out), "--spawned-at", str(time.monotonic())]
    _run(command, {"OMP_NUM_THREADS": str(max(1, threads // variant.ranks))})
    loaded = json.loads(out.read_text())
    decode = {int(streams): rate for streams, rate in loaded["decode"].items()}
    return Figures(loaded["start_s"], loaded["first_token_s"], decode)


def table(comparison: Comparison) -> str:
    """Rows of Markdown."""
    ours, theirs = comparison.medians()
    streams = list(ours.decode)
    head = ["", "start", "first token", *(f"b{count}" for count in streams)]

    def row(name: str, figures: Figures) -> list[str]:
        rates = [f"{figures.decode[count]:.1f} tok/s" for count in streams]
        return [name, f"{figures.start_s:.1f} s", f"{figures.first_token_s * 1000:.0f} ms", *rates]

    ratio = comparison.ratios()
    rows = [
        row(f"Ryzanstein, {comparison.our_ranks} ranks", ours),
        row(f"{comparison.peer} {comparison.version}, {comparison.variant}", theirs),
        [
            "times as good",
            f"{ratio.start_s:.2f}",
            f"{ratio.first_token_s:.2f}",
            *(f"{ratio.decode[count]:.2f}" for count in streams),
        ],
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def machine_line(comparison: Comparison) -> str:
    """How steady the machine was, for people."""
    states = comparison.machine
    probes = [rate for one in states for rate in (one.read_bytes_per_s_before, one.read_bytes_per_s_after)]
    others = [one.load.other_cores for one in states]
    return (
        f"{states[0].machine.cpu_model}, {states[0].probe_cores} cores read {min(probes) / 1e9:.1f} to "
        f"{max(probes) / 1e9:.1f} GB/s ({len(probes)} probes around the rounds); other programs used "
        f"{min(others):.2f} to {max(others):.2f} cores meanwhile"
    )


def _command(
    peer: Peer,
    variant: Variant,
    python: Path,
    model: Path,
    converted: Path,
    threads: int,
    launcher: tuple[str, ...],
) -> list[str]:
    command = [str(python), *launcher, f"benchmarks.peers.runners.{peer.name}", "--model", str(model)]
    command += ["--weights", variant.weights, "--converted", str(converted)]
    return [*command, "--ranks", str(variant.ranks), "--threads", str(threads)]


def _run(command: list[str], more: dict[str, str] | None = None) -> None:
    """What it prints goes to standard error: ours carries the table only."""
    done = subprocess.run(command, env={**environment(), **(more or {})}, stdout=sys.stderr, check=False)
    if done.returncode:
        raise PeerError(f"{' '.join(command[:4])} ended with {done.returncode}: what it said stands above")


def _median(figures: list[Figures]) -> Figures:
    return Figures(
        statistics.median(one.start_s for one in figures),
        statistics.median(one.first_token_s for one in figures),
        {count: statistics.median(one.decode[count] for one in figures) for count in figures[0].decode},
    )


def _ratio(ours: Figures, theirs: Figures) -> Figures:
    return Figures(
        theirs.start_s / ours.start_s,
        theirs.first_token_s / ours.first_token_s,
        {count: rate / theirs.decode[count] for count, rate in ours.decode.items()},
    )

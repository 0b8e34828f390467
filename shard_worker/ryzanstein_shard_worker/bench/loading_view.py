"""The results of `ryzanstein bench loading` as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.console import RenderableType

from ryzanstein.measuring.plots import finish
from ryzanstein.terminal import figures_table

from .loading import PHASES, LoadingResult

_COLORS = {"open": "tab:gray", "modules": "tab:orange", "weights": "tab:blue"}


def tables(results: Sequence[LoadingResult]) -> list[RenderableType]:
    """Medians over the loads; a load is over when its last rank is."""
    columns = [
        "start",
        "rank",
        "loads",
        "open s",
        "modules s",
        "weights s",
        "all s",
        "GB",
        "GB/s",
        "in memory before",
    ]
    rows = []
    for start, rank in _cases(results):
        chosen = [each for each in results if (each.start, each.rank) == (start, rank)]
        cached = [each.cached_share for each in chosen if each.cached_share is not None]
        rows.append(
            [
                start,
                str(rank),
                str(len(chosen)),
                *(f"{median(each.phases_s[phase] for each in chosen):.3f}" for phase in PHASES),
                f"{median(each.seconds for each in chosen):.3f}",
                f"{chosen[0].file_bytes / 1e9:.3f}",
                f"{median(each.bytes_per_s for each in chosen) / 1e9:.2f}",
                f"{median(cached):.0%}" if cached else "unknown",
            ]
        )
    return [figures_table("From the checkpoint to weights that can be used", columns, rows, names=2)]


def draw(figure: Any, results: Sequence[LoadingResult]) -> None:
    """A bar per start and rank, its phases on top of each other; beside it the gigabytes per second."""
    phases, rates = figure.subplots(1, 2)
    labels, below, speed = [], [0.0] * len(_cases(results)), []
    for start, rank in _cases(results):
        labels.append(f"{start}, rank {rank}")
        speed.append(median(e.bytes_per_s for e in results if (e.start, e.rank) == (start, rank)) / 1e9)
    for phase in PHASES:
        heights = [
            median(e.phases_s[phase] for e in results if (e.start, e.rank) == case)
            for case in _cases(results)
        ]
        phases.bar(labels, heights, bottom=below, label=phase, color=_COLORS[phase], width=0.6)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    phases.legend(frameon=False)
    finish(phases, title="time to load", xlabel="", ylabel="seconds")
    rates.bar(labels, speed, color=_COLORS["weights"], width=0.6)
    rates.bar_label(rates.containers[0], fmt="%.2f")
    rates.margins(y=0.15)
    finish(rates, title="weights", xlabel="", ylabel="GB/s of each rank")
    for axes in (phases, rates):
        axes.tick_params(axis="x", rotation=20)
    figure.set_size_inches(12, 5)


def _cases(results: Sequence[LoadingResult]) -> list[tuple[str, int]]:
    """(start, rank), cold before warm."""
    return sorted({(each.start, each.rank) for each in results})

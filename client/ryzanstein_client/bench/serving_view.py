"""The results of `ryzanstein bench serving` as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from ryzanstein.measuring.plots import finish, log_axis
from ryzanstein.terminal import figures_table

from .summary import Distribution, ServingResult

_PERCENTILES = tuple(range(101))


def tables(results: Sequence[ServingResult]) -> list[RenderableType]:
    """What went through, and how long it took."""
    return [_throughput(results), *_latency(results), *_failures(results)]


def _throughput(results: Sequence[ServingResult]) -> RenderableType:
    with_goodput = any(result.goodput_per_s is not None for result in results)
    columns = ["load", "sent", "done", "refused", "failed", "req/s", "tok/s in", "tok/s out"]
    rows = []
    for result in results:
        row = [result.load, *map(str, (result.sent, result.done, result.refused, result.failed))]
        row += [f"{result.requests_per_s:.2f}"]
        row += [f"{rate:.0f}" for rate in (result.prompt_tokens_per_s, result.output_tokens_per_s)]
        if with_goodput:
            row += [f"{result.goodput_per_s or 0.0:.2f}/s, {result.good_share or 0.0:.0%}"]
        rows.append(row)
    return figures_table("Through", columns + ["good"] * with_goodput, rows)


def _latency(results: Sequence[ServingResult]) -> list[RenderableType]:
    rows = []
    for result in results:
        for name, found in (
            ("first token", result.first_token_s),
            ("between tokens", result.inter_token_s),
            ("per token", result.per_token_s),
            ("whole request", result.end_to_end_s),
        ):
            if found is not None:
                shown = found.spread
                figures = (shown.mean, shown.p50, shown.p90, shown.p99, shown.max)
                rows.append([result.load, name, *(f"{seconds * 1e3:.1f}" for seconds in figures)])
    columns = ["load", "milliseconds", "mean", "p50", "p90", "p99", "max"]
    return [figures_table("How long", columns, rows, names=2)] if rows else []


def _failures(results: Sequence[ServingResult]) -> list[RenderableType]:
    rows = [
        [result.load, str(count), reason] for result in results for reason, count in result.failures.items()
    ]
    return [figures_table("Why requests failed", ["load", "times", "reason"], rows, names=3)] if rows else []


def draw(figure: Any, results: Sequence[ServingResult]) -> None:
    """Three distributions and the rates, one line or bar per load."""
    axes = figure.subplots(2, 2)
    for place, title, name in (
        (axes[0][0], "time to first token", "first_token_s"),
        (axes[0][1], "between tokens", "inter_token_s"),
        (axes[1][0], "whole request", "end_to_end_s"),
    ):
        for result in results:
            found: Distribution | None = getattr(result, name)
            if found is not None:
                milliseconds = [max(seconds * 1e3, 1e-3) for seconds in found.percentiles]
                place.plot(milliseconds, _PERCENTILES, label=result.load, linewidth=1.6)
        log_axis(place.xaxis)
        place.set_ylim(0, 100)
        finish(place, title=title, xlabel="milliseconds", ylabel="percent of all within")
    axes[0][0].legend(frameon=False)
    rates, labels = axes[1][1], [result.load for result in results]
    rates.bar(labels, [result.output_tokens_per_s for result in results], color="tab:blue", width=0.6)
    rates.bar_label(rates.containers[0], fmt="%.0f")
    rates.margins(y=0.15)
    finish(rates, title="output", xlabel="load", ylabel="tokens per second")

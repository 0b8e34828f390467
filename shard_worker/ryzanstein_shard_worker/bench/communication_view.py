"""The results of `ryzanstein bench communication` as a table and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from ryzanstein.measuring.plots import finish, log_axis
from ryzanstein.terminal import figures_table

from ..communication.benchmark import CollectiveResult

_COLORS = {"shared_memory": "tab:blue", "gloo": "tab:orange", "nccl": "tab:green"}


def tables(results: Sequence[CollectiveResult]) -> list[RenderableType]:
    """One row per operation, backend and size."""
    columns = ["operation", "backend", "size", "rounds", "p50 us", "p99 us", "alg GB/s", "bus GB/s"]
    rows = [
        [
            result.operation,
            result.backend,
            size_text(result.size_bytes) if result.operation != "barrier" else "",
            str(result.latency_s.count),
            f"{result.latency_s.p50 * 1e6:.1f}",
            f"{result.latency_s.p99 * 1e6:.1f}",
            _rate(result.algorithm_bytes_per_s),
            _rate(result.bus_bytes_per_s),
        ]
        for result in sorted(results, key=lambda each: (each.operation, each.size_bytes))
    ]
    ranks = ", ".join(str(count) for count in sorted({result.ranks for result in results}))
    return [figures_table(f"Collectives of {ranks} ranks", columns, rows, names=2)]


def draw(figure: Any, results: Sequence[CollectiveResult]) -> None:
    """For each operation the latency over the size; then the bus bandwidth of all-reduce."""
    operations = list(dict.fromkeys(each.operation for each in results if each.operation != "barrier"))
    if not operations:  # nothing has a size
        _draw_barrier(figure.subplots(), results)
        return
    columns = min(3, len(operations))
    axes = figure.subplots(2 * -(-len(operations) // columns), columns, squeeze=False)
    for index, operation in enumerate(operations):
        row, column = 2 * (index // columns), index % columns
        chosen = [result for result in results if result.operation == operation]
        _draw_operation(axes[row][column], axes[row + 1][column], operation, chosen)
    for index in range(len(operations), len(axes) // 2 * columns):
        for row in (2 * (index // columns), 2 * (index // columns) + 1):
            axes[row][index % columns].set_visible(False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    figure.set_size_inches(4.2 * columns, 3.0 * len(axes))


def _draw_operation(
    latency: Any, bandwidth: Any, operation: str, results: Sequence[CollectiveResult]
) -> None:
    for backend in dict.fromkeys(result.backend for result in results):
        chosen = [result for result in results if result.backend == backend]
        sizes = [result.size_bytes / 1024 for result in chosen]
        color = _COLORS.get(backend)
        p50, p99 = ([getattr(each.latency_s, name) * 1e6 for each in chosen] for name in ("p50", "p99"))
        latency.plot(sizes, p50, color=color, marker="o", markersize=3, label=f"{backend} p50")
        latency.plot(sizes, p99, color=color, linestyle=":", label=f"{backend} p99")
        bus = [(each.bus_bytes_per_s or 0.0) / 1e9 for each in chosen]
        bandwidth.plot(sizes, bus, color=color, marker="o", markersize=3)
    for axes in (latency, bandwidth):
        log_axis(axes.xaxis)
    log_axis(latency.yaxis)
    finish(latency, title=operation, xlabel="KiB", ylabel="microseconds")
    finish(bandwidth, title=f"{operation}: bus bandwidth", xlabel="KiB", ylabel="GB/s")
    bandwidth.set_ylim(bottom=0)


def _draw_barrier(axes: Any, results: Sequence[CollectiveResult]) -> None:
    axes.bar([each.backend for each in results], [each.latency_s.p50 * 1e6 for each in results])
    finish(axes, title="barrier", xlabel="backend", ylabel="microseconds")


def size_text(size_bytes: int) -> str:
    """`64 KiB`; bytes where it is no whole number of them."""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= scale and size_bytes % scale == 0:
            return f"{size_bytes // scale} {unit}"
    return f"{size_bytes} B"


def _rate(bytes_per_s: float | None) -> str:
    return "" if bytes_per_s is None else f"{bytes_per_s / 1e9:.2f}"

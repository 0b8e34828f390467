"""How plots of measurements look alike. Needs matplotlib, which the extra `bench` brings."""

from __future__ import annotations

from typing import Any


def log_axis(axis: Any) -> None:
    """Logarithmic, with numbers as people write them: 40, not 4 × 10¹."""
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.9g}"))
    low, high = axis.get_view_interval()
    # Within one decade the decade's own number says too little; over several there is no room for more.
    few = high / max(low, 1e-12) < 30
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)) if few else NullFormatter())


def finish(axes: Any, *, title: str, xlabel: str, ylabel: str) -> None:
    """Titles and a light grid."""
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3, which="major")
    axes.set_axisbelow(True)

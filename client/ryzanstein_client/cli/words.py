"""What states, causes, sizes and times are called on a terminal; the same words as on the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: State of a worker or group → style of rich.
STYLES = {
    "serving": "green",
    "active": "green",
    "degraded": "yellow",
    "draining": "yellow",
    "suspect": "yellow",
    "loading": "cyan",
    "forming": "cyan",
    "joining": "cyan",
    "waiting": "yellow",
    "recovering": "red",
    "lost": "red",
    "failed": "red",
}

#: What happened to the culprit, as the end of a sentence.
CAUSES = {
    "process": "its process died",
    "lease": "stopped answering",
    "collective": "failed in a collective",
    "stuck": "stood still",
    "device": "its device failed",
    "memory": "ran out of memory",
    "engine": "its engine failed",
    "stream": "took no requests",
    "drain": "was drained",
    "resize": "number of ranks changed",
}

#: Causes that somebody wanted.
PLANNED = ("drain", "resize")


def bytes_text(count: int) -> str:
    """`1.5 GiB`; an empty text for 0."""
    if not count:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration_text(seconds: float) -> str:
    """`0.4 ms`, `38 ms`, `1.25 s`, `42 s`, `3 min`, `5 h`."""
    for limit_s, scale, digits, unit in (
        (0.01, 1e3, 1, "ms"),
        (0.9995, 1e3, 0, "ms"),
        (9.995, 1.0, 2, "s"),
        (99.5, 1.0, 0, "s"),
        (5400.0, 1 / 60, 0, "min"),
        (129_600.0, 1 / 3600, 0, "h"),
    ):
        if seconds < limit_s:
            return f"{seconds * scale:.{digits}f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def ago_text(seconds: float) -> str:
    """`12 s ago`, `just now`."""
    if seconds < 1.5:
        return "just now"
    return f"{seconds:.0f} s ago" if seconds < 99.5 else f"{duration_text(seconds)} ago"


def rate_text(per_second: float) -> str:
    """One decimal while it is small."""
    return f"{per_second:.1f}" if 0 < per_second < 10 else f"{per_second:,.0f}"


def count_text(number: int, noun: str) -> str:
    """`1 stream`, `4 streams`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def who(culprit: Mapping[str, Any]) -> str:
    """`worker-1 (rank 1)`."""
    rank = "" if culprit["rank"] is None else f" (rank {culprit['rank']})"
    return f"{culprit['worker_id']}{rank}"


def what_happened(recovery: Mapping[str, Any]) -> str:
    """`worker-1 (rank 1): its process died`."""
    cause = CAUSES.get(recovery["cause"], str(recovery["cause"]))
    culprit = recovery["culprit"]
    return cause if culprit is None else f"{who(culprit)}: {cause}"

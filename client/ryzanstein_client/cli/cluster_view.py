"""The cluster as tables for people. The values are those of `/cluster`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_STYLES = {
    "serving": "green",
    "active": "green",
    "degraded": "yellow",
    "draining": "yellow",
    "suspect": "yellow",
    "recovering": "yellow",
    "lost": "red",
    "failed": "red",
}

#: Wide enough for every column when nobody's terminal sets a limit.
_PLAIN_WIDTH = 200


class OutputConsole(Console):
    """Standard output: styled on a terminal, plain and unwrapped elsewhere."""

    def __init__(self) -> None:
        super().__init__(highlight=False, emoji=False, markup=False)
        if not self.is_terminal:
            super().__init__(
                highlight=False, emoji=False, markup=False, width=_PLAIN_WIDTH, color_system=None
            )

    def on_broken_pipe(self) -> None:
        """rich would exit with 1; a reader that has seen enough is no failure."""
        raise BrokenPipeError


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


def render_cluster(cluster: Mapping[str, Any]) -> RenderableType:
    """Model, groups, workers, requests, and the last recovery."""
    parts: list[RenderableType] = [_headline(cluster), _workers(cluster)]
    reasons = [
        Text(f"group {group['id']}: {group['state']}: {group['reason']}")
        for group in cluster["groups"]
        if group["reason"] and group["state"] != "serving"
    ]
    if cluster["last_recovery"]:
        reasons.append(Text(recovery_text(cluster["last_recovery"])))
    return Group(*parts, *reasons)


def recovery_text(recovery: Mapping[str, Any]) -> str:
    """One line: what died, what it cost."""
    culprit = recovery["culprit"] or {}
    who = f" of worker {culprit['worker_id']}" if culprit else ""
    rank = f" (rank {culprit['rank']})" if culprit and culprit["rank"] is not None else ""
    steps = (("detected", "detected_s"), ("re-formed", "reformed_s"), ("next token", "first_token_s"))
    times = ", ".join(
        f"{name} after {recovery[key] * 1000:.0f} ms" for name, key in steps if recovery[key] is not None
    )
    resumed = f"{recovery['requests_resumed']} requests resumed"
    return f"last recovery: {recovery['cause']}{who}{rank}, epoch {recovery['epoch']}: {times}; {resumed}"


def _headline(cluster: Mapping[str, Any]) -> Text:
    model, requests = cluster["model"] or {}, cluster["requests"] or {"running": 0, "waiting": 0}
    line = Text(f"{model.get('name') or 'no model'}  ")
    line.append(cluster["state"] or "unknown", style=_STYLES.get(cluster["state"], ""))
    line.append(f"  epoch {cluster['epoch']}")
    if model.get("parameters"):
        line.append(f"  {model['parameters'] / 1e6:.1f} M parameters, {model['dtype']}")
    line.append(f"\nrequests: {requests['running']} running, {requests['waiting']} waiting")
    return line


def _workers(cluster: Mapping[str, Any]) -> Table:
    """What is the same in every row is left out: a terminal has 80 columns."""
    workers = sorted(cluster["workers"], key=_order)
    columns: list[tuple[str, Any, Callable[[Mapping[str, Any]], str | Text]]] = [
        ("worker", "left", lambda worker: str(worker["id"])),
        ("group", "left", lambda worker: worker["group"] or "-"),
        ("rank", "right", lambda worker: "-" if worker["rank"] is None else str(worker["rank"])),
        ("state", "left", lambda worker: Text(worker["state"], style=_STYLES.get(worker["state"], ""))),
        ("phase", "left", _phase),
        ("host", "left", lambda worker: str(worker["host"])),
        ("pid", "right", lambda worker: str(worker["pid"])),
        ("device", "left", lambda worker: str(worker["device"])),
        ("weights", "right", lambda worker: _memory(worker, "weights_bytes")),
        ("kv cache", "right", lambda worker: _memory(worker, "kv_cache_bytes")),
        ("used", "right", lambda worker: _memory(worker, "used_bytes")),
        ("step", "right", lambda worker: str(worker["step"])),
        ("heartbeat", "right", lambda worker: f"{worker['heartbeat_age_s'] * 1000:.0f} ms"),
    ]
    left_out = {
        "group": len(cluster["groups"]) < 2,
        "host": len({worker["host"] for worker in workers}) < 2,
        "device": len({worker["device"] for worker in workers}) < 2,
        "phase": all(worker["state"] == "active" for worker in workers),
    }
    shown = [column for column in columns if not left_out.get(column[0], False)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, justify, _ in shown:
        table.add_column(title, justify=justify, no_wrap=True, header_style="dim")
    for worker in workers:
        table.add_row(*(cell(worker) for _, _, cell in shown))
    return table


def _memory(worker: Mapping[str, Any], key: str) -> str:
    return bytes_text((worker["memory"] or {}).get(key, 0))


def _order(worker: Mapping[str, Any]) -> tuple[bool, str, int, str]:
    outside = worker["rank"] is None
    return outside, worker["group"] or "", -1 if outside else worker["rank"], worker["id"]


def _phase(worker: Mapping[str, Any]) -> str:
    if worker["state"] == "loading" and 0 < worker["load_progress"] < 1:
        return f"{worker['phase']} {worker['load_progress']:.0%}"
    return str(worker["phase"])

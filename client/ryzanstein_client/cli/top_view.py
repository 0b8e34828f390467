"""`ryzanstein top`: does it serve, who is to blame if not, how fast, on what, and what happened before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .cluster_view import workers_table
from .words import (
    PLANNED,
    STYLES,
    ago_text,
    count_text,
    duration_text,
    rate_text,
    what_happened,
)

_SPARKS = "▁▂▃▄▅▆▇█"
#: Of the snapshots that are remembered for the sparklines, one a second.
_KEPT = 120
#: Fewer columns than this tell nothing.
_LEAST_ROOM = 10
#: A recovery is worth a sentence for so long after it.
_RECENT_S = 120.0

_LEVELS = {"serving": "●", "degraded": "▲", "draining": "▲"}
_ASCII_LEVELS = {"●": "*", "▲": "!", "■": "#"}

Value = Callable[[Mapping[str, Any]], float | None]


class TopView:
    """Shows the newest snapshot on the whole screen. `update` it, and print it again."""

    def __init__(self) -> None:
        self._cluster: Mapping[str, Any] | None = None
        self._error = ""
        self._since = ""
        self._points: deque[tuple[float, Mapping[str, Any]]] = deque(maxlen=_KEPT)

    def update(self, cluster: Mapping[str, Any]) -> None:
        """A new snapshot."""
        self._cluster, self._error = cluster, ""
        traffic, now = cluster.get("traffic"), cluster.get("unix_s") or 0.0
        if traffic and (not self._points or now - self._points[-1][0] >= 0.9):
            self._points.append((now, traffic))

    def lost(self, error: str, clock: str) -> None:
        """The coordinator can't be asked, since `clock` (a time of day)."""
        if not self._error:
            self._since = clock
        self._error = error

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cluster = self._cluster
        if self._error:
            yield _fit(Text(f"■ {self._error}", style="bold red"), options)
            if cluster is not None:
                yield Text(f"  what follows is as it was at {self._since}; trying again", style="dim")
        if cluster is None:
            return
        if not self._error:
            yield _fit(_state(cluster), options)
        lines = [line for line in (_trouble(cluster), *_reasons(cluster)) if line is not None]
        for line in lines:
            yield Padding(line, (0, 0, 0, 2))
        yield Text()
        yield from self._traffic(cluster, options)
        yield Text()
        table = workers_table(cluster, options.max_width)
        yield table
        used = 2 + len(lines) + (6 if self._points else 1) + 1 + len(cluster["workers"]) + 2
        yield from _epochs(cluster, options, max(1, (options.height or console.height) - used))

    def _traffic(self, cluster: Mapping[str, Any], options: ConsoleOptions) -> RenderResult:
        if not self._points:
            requests = cluster["requests"] or {"running": 0, "waiting": 0}
            yield Text(f"requests: {requests['running']} running, {requests['waiting']} waiting")
            return
        now = self._points[-1][1]
        rows: list[tuple[str, str, Value, float]] = [
            (
                "throughput",
                f"{rate_text(now['generated_tokens_per_s'])} tokens/s",
                lambda point: point["generated_tokens_per_s"],
                1.0,
            ),
            ("first token", _latency(now, "first_token"), lambda point: point["first_token_p50_s"], 1e-9),
            ("between tokens", _latency(now, "inter_token"), lambda point: point["inter_token_p50_s"], 1e-9),
            (
                "requests",
                f"{now['running']:,} running, {now['waiting']:,} waiting",
                lambda point: point["running"] + point["waiting"],
                2.0,
            ),
            (
                "kv cache",
                f"{now['kv_cache_usage_ratio']:.1%}",
                lambda point: point["kv_cache_usage_ratio"],
                1.0,
            ),
        ]
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, min_width=24)
        table.add_column(no_wrap=True, style="cyan")
        room = min(_KEPT, options.max_width - 16 - 28)
        for name, text, value, least in rows:
            table.add_row(name, text, self._spark(value, least, room, ascii_only=options.ascii_only))
        yield table

    def _spark(self, value: Value, least: float, room: int, *, ascii_only: bool) -> str:
        """The newest seconds at the right end."""
        values = [value(point) for _, point in list(self._points)[-room:]] if room >= _LEAST_ROOM else []
        top = max([least, *(number for number in values if number is not None)])
        sparks = "_.-=+*%#" if ascii_only else _SPARKS
        return "".join(" " if number is None else sparks[min(7, int(8 * number / top))] for number in values)


def _fit(line: Text, options: ConsoleOptions) -> Text:
    if options.ascii_only:
        line = Text(_ASCII_LEVELS.get(line.plain[:1], line.plain[:1]) + line.plain[1:], style=line.style)
    line.overflow = "fold"
    return line


def _state(cluster: Mapping[str, Any]) -> Text:
    """`● serving  llama  epoch 7, 4 of 4 ranks, 1 spare`."""
    state = cluster["state"] or "unknown"
    ready = cluster.get("readiness")
    mark = _LEVELS.get(state, "■") if not ready or ready["ready"] else "■"
    model = cluster["model"] or {}
    ranks = sum(1 for worker in cluster["workers"] if worker["rank"] is not None)
    wanted = sum(
        group.get("full_tensor_parallel_size") or group["tensor_parallel_size"] for group in cluster["groups"]
    )
    # One that has a group stands by only until that is formed again.
    spares = sum(1 for worker in cluster["workers"] if worker["state"] == "standby" and not worker["group"])
    style = "red" if mark == "■" and state in ("serving", "recovering") else STYLES.get(state, "yellow")
    line = Text(f"{mark} {state}", style=f"bold {style}")
    rest = f"  {model.get('name') or 'no model'}  epoch {cluster['epoch']}, {ranks} of {wanted} ranks"
    line.append(f"{rest}, {count_text(spares, 'spare')}", style="not bold default")
    return line


def _trouble(cluster: Mapping[str, Any]) -> Text | None:
    """Who is to blame, while it does not serve and for a while after."""
    last = cluster["last_recovery"]
    if last is None or last["cause"] in PLANNED:
        return None
    if last["reformed_s"] is None:
        culprit = last["culprit"]
        where = f" (host {culprit['host']}, {culprit['device']}, process {culprit['pid']})" if culprit else ""
        return Text(f"to blame: {what_happened(last)}{where}", style="bold")
    served = next((epoch for epoch in cluster.get("history") or () if epoch["epoch"] == last["epoch"]), None)
    if served is None or served["served_unix_s"] is None:
        return None
    age_s = cluster["unix_s"] - served["served_unix_s"]
    if age_s > _RECENT_S:
        return None
    return Text(f"{ago_text(age_s)}: {what_happened(last)}; {_back(last)}")


def _reasons(cluster: Mapping[str, Any]) -> list[Text]:
    """Why groups do not serve, or with fewer ranks."""
    return [
        Text(f"group {group['id']}: {group['state']}: {group['reason']}")
        for group in cluster["groups"]
        if group["reason"] and group["state"] != "serving"
    ]


def _epochs(cluster: Mapping[str, Any], options: ConsoleOptions, most: int) -> RenderResult:
    """The last epochs, newest first: when, what happened, how long it took."""
    history = (cluster.get("history") or [])[:most]
    if not history:
        return
    yield Text()
    groups = len(cluster["groups"]) > 1
    names = [f"epoch {epoch['epoch']}" for epoch in history]
    times = [ago_text(cluster["unix_s"] - epoch["began_unix_s"]) for epoch in history]
    table = Table.grid(padding=(0, 2, 0, 0))
    for texts in (names, times):
        table.add_column(justify="right", style="dim", no_wrap=True, min_width=max(map(len, texts)))
    table.add_column(overflow="ellipsis", no_wrap=True)
    for name, time, epoch in zip(names, times, history, strict=True):
        recovery = epoch["recovery"]
        text = Text(f"{epoch['group']}  " if groups else "")
        if recovery is None:
            text.append("started")
        else:
            planned = recovery["cause"] in PLANNED
            text.append(what_happened(recovery), style="" if planned else "red")
            text.append(f"; {_back(recovery)}", style="dim")
        if epoch["served_unix_s"] is None:
            text.append("; never served" if epoch["ended_unix_s"] else "; not serving yet", style="yellow")
        table.add_row(name, time, text)
    yield table


def _back(recovery: Mapping[str, Any]) -> str:
    parts = []
    if recovery["first_token_s"] is not None:
        parts.append(f"next token after {duration_text(recovery['first_token_s'])}")
    elif recovery["reformed_s"] is not None:
        parts.append(f"formed again after {duration_text(recovery['reformed_s'])}")
    if recovery["requests_resumed"]:
        parts.append(f"{count_text(recovery['requests_resumed'], 'stream')} went on")
    return ", ".join(parts) or "not formed again yet"


def _latency(point: Mapping[str, Any], name: str) -> str:
    median, high = point[f"{name}_p50_s"], point[f"{name}_p99_s"]
    return "-" if median is None else f"{duration_text(median)}, 99 % in {duration_text(high)}"

"""The cluster as tables for people. The values are those of `/cluster`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from .fitted_table import Column, fitted_table
from .words import STYLES, bytes_text, duration_text, rate_text, who

#: What the state of the worker says already.
_PLAIN_PHASES = ("", "serving", "waiting", "loaded", "active")


class _ClusterView:
    def __init__(self, cluster: Mapping[str, Any]) -> None:
        self._cluster = cluster

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cluster = self._cluster
        yield headline(cluster)
        yield workers_table(cluster, options.max_width)
        for group in cluster["groups"]:
            if group["reason"] and group["state"] != "serving":
                yield Text(f"group {group['id']}: {group['state']}: {group['reason']}")
        if cluster["last_recovery"]:
            yield Text(recovery_text(cluster["last_recovery"]))


def render_cluster(cluster: Mapping[str, Any]) -> RenderableType:
    """Model, groups, workers, requests, and the last recovery."""
    return _ClusterView(cluster)


def recovery_text(recovery: Mapping[str, Any]) -> str:
    """One line: what died, what it cost."""
    culprit = recovery["culprit"]
    of_whom = "" if culprit is None else f" of worker {who(culprit)}"
    steps = (("detected", "detected_s"), ("re-formed", "reformed_s"), ("next token", "first_token_s"))
    times = ", ".join(
        f"{name} after {recovery[key] * 1000:.0f} ms" for name, key in steps if recovery[key] is not None
    )
    resumed = f"{recovery['requests_resumed']} requests resumed"
    return f"last recovery: {recovery['cause']}{of_whom}, epoch {recovery['epoch']}: {times}; {resumed}"


def headline(cluster: Mapping[str, Any]) -> Text:
    """Two lines: what is served and how, and how much of it."""
    model, requests = cluster["model"] or {}, cluster["requests"] or {"running": 0, "waiting": 0}
    line = Text(f"{model.get('name') or 'no model'}  ")
    line.append(cluster["state"] or "unknown", style=STYLES.get(cluster["state"], ""))
    line.append(f"  epoch {cluster['epoch']}")
    if model.get("parameters"):
        line.append(f"  {model['parameters'] / 1e6:.1f} M parameters, {model['dtype']}")
        if model.get("quantization", "none") not in ("", "none"):
            line.append(f", weights {model['quantization']}")
    line.append(f"\nrequests: {requests['running']} running, {requests['waiting']} waiting")
    traffic = cluster.get("traffic")
    if traffic and traffic["generated_tokens_per_s"]:
        line.append(f", {rate_text(traffic['generated_tokens_per_s'])} tokens/s")
    return line


def workers_table(cluster: Mapping[str, Any], width: int) -> Table:
    """One row per worker. What is the same in every row is left out."""
    workers = sorted(cluster["workers"], key=_order)
    columns = [
        Column("worker", 99, lambda worker: str(worker["id"])),
        Column("group", 40, lambda worker: worker["group"] or "-"),
        Column("rank", 98, lambda worker: "-" if worker["rank"] is None else str(worker["rank"]), "right"),
        Column("state", 97, lambda worker: Text(worker["state"], style=STYLES.get(worker["state"], ""))),
        Column("phase", 60, _phase),
        Column("host", 35, lambda worker: str(worker["host"])),
        Column("pid", 50, lambda worker: str(worker["pid"]), "right"),
        Column("device", 30, lambda worker: str(worker["device"])),
        Column("health", 75, _health),
        Column("weights", 25, lambda worker: _memory(worker, "weights_bytes"), "right"),
        Column("kv cache", 24, lambda worker: _memory(worker, "kv_cache_bytes"), "right"),
        Column("used", 45, lambda worker: _memory(worker, "used_bytes"), "right"),
        Column("step", 20, lambda worker: str(worker["step"]), "right"),
        Column("step time", 70, _step_time, "right"),
        Column("comm", 65, _communication, "right"),
        Column("heartbeat", 96, _heartbeat, "right"),
    ]
    same = {
        "group": len(cluster["groups"]) < 2,
        "host": len({worker["host"] for worker in workers}) < 2,
        "device": len({worker["device"] for worker in workers}) < 2,
        "phase": all(worker["phase"] in _PLAIN_PHASES for worker in workers),
        "health": not any(_health(worker).plain for worker in workers),
        "step time": not any(_step_time(worker) for worker in workers),
        "comm": not any(_communication(worker) for worker in workers),
    }
    shown = [column for column in columns if not same.get(column.title, False)]
    return fitted_table(shown, workers, width)


def _memory(worker: Mapping[str, Any], key: str) -> str:
    return bytes_text((worker["memory"] or {}).get(key, 0))


def _order(worker: Mapping[str, Any]) -> tuple[bool, str, int, str]:
    outside = worker["rank"] is None
    return outside, worker["group"] or "", -1 if outside else worker["rank"], worker["id"]


def _phase(worker: Mapping[str, Any]) -> str:
    if worker["state"] == "loading" and 0 < worker["load_progress"] < 1:
        return f"{worker['phase']} {worker['load_progress']:.0%}"
    return str(worker["phase"])


def _health(worker: Mapping[str, Any]) -> Text:
    """What a GPU says of itself, and what is wrong with any device."""
    health = worker.get("device_health") or {}
    if health.get("failure"):
        return Text(health["failure"], style="red")
    told = []
    if health.get("utilization_ratio") is not None:
        told.append(f"{health['utilization_ratio']:.0%}")
    if health.get("temperature_celsius") is not None:
        told.append(f"{health['temperature_celsius']:.0f} °C")
    line = Text(" ".join(told))
    if health.get("ecc_errors"):
        line.append(f" {health['ecc_errors']} ECC errors", style="red")
    return line


def _step_time(worker: Mapping[str, Any]) -> str:
    seconds = worker.get("step_duration_s") or 0.0
    return "" if worker["rank"] is None or not seconds else duration_text(seconds)


def _communication(worker: Mapping[str, Any]) -> str:
    if worker["rank"] is None or not worker["step"] or not worker.get("step_duration_s"):
        return ""
    return f"{worker.get('communication_ratio') or 0.0:.0%}"


def _heartbeat(worker: Mapping[str, Any]) -> Text:
    """Its age, in a colour that says how much of the lease is over."""
    age_s, lease_s = worker["heartbeat_age_s"], worker["lease_ttl_s"]
    style = ""
    if lease_s and worker["state"] != "lost":
        style = "red" if age_s >= lease_s else "yellow" if age_s >= 0.6 * lease_s else ""
    return Text(duration_text(age_s) if age_s >= 1 else f"{age_s * 1000:.0f} ms", style=style)

"""Metrics, the Grafana dashboard's queries and the alert rules, against a live Prometheus and a real coordinator."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from ryzanstein_client import Client

from .conftest import DEPLOY, INFERENCE_KEY, Prometheus, Watched

#: What needs a GPU, a full cache or a prefix that was seen before.
_MAY_BE_EMPTY = ("gpu_", "prefix_cache")


def queries() -> Iterator[tuple[str, str]]:
    """Title and expression of all that the dashboard asks, with Grafana's variables filled in."""
    dashboard = json.loads((DEPLOY / "grafana" / "ryzanstein.json").read_text(encoding="utf-8"))
    panels: list[dict[str, Any]] = dashboard["panels"]
    asked = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]
    asked += [(each["name"], each["expr"]) for each in dashboard["annotations"]["list"]]
    values = {"job": ".+", "instance": ".+", "__rate_interval": "30s", "__range": "5m"}
    for title, expression in asked:
        yield title, re.sub(r"\$(\w+)", lambda found: values[found[1]], expression)


def unanswered(prometheus: Prometheus) -> dict[str, str]:
    """Title → expression, of those that give no number."""
    return {
        title: expression
        for title, expression in queries()
        if not any(word in expression for word in _MAY_BE_EMPTY)
        and title != "Recoveries"  # an annotation: only while something happens
        and all(sample["value"][1] == "NaN" for sample in prometheus.query(expression))
    }


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_every_query_of_the_dashboard_has_an_answer_and_every_rule_is_evaluated(
    watched: Watched, prometheus: Prometheus | None
) -> None:
    assert prometheus is not None
    deadline = time.monotonic() + 30
    while not prometheus.query(
        "count_over_time(ryzanstein_recoveries_total[1m]) > 1"
    ):  # an increase needs a before
        assert time.monotonic() < deadline, "nothing was scraped"
        time.sleep(0.2)
    ranks = {worker["rank"]: worker["pid"] for worker in watched.snapshot()["workers"]}
    psutil.Process(ranks[1]).kill()  # a recovery is among what is measured
    deadline = time.monotonic() + 30
    with Client(watched.cluster.grpc, api_key=INFERENCE_KEY) as client:
        while missing := unanswered(prometheus):
            assert time.monotonic() < deadline, missing
            client.generate("1 + 2 = ", max_tokens=20, ignore_eos=True)
            time.sleep(0.3)
    for _, expression in queries():
        prometheus.query(expression)  # those without an answer are well formed all the same
    assert prometheus.query("max(sum by (rank) (ryzanstein_communication_seconds_total) > 0)")
    assert prometheus.query('ryzanstein_communication_seconds_total{operation="all_reduce"} > 0')
    for counted in ("bytes", "operations"):
        assert prometheus.query(f'ryzanstein_communication_{counted}_total{{operation="all_reduce"}} > 0')
    assert prometheus.query("up") != []
    groups = prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 15
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_rules_fire_when_they_should_and_only_then() -> None:
    for words in (("check", "rules", "ryzanstein.rules.yml"), ("test", "rules", "ryzanstein.rules.test.yml")):
        done = subprocess.run(
            ["promtool", *words],
            cwd=DEPLOY / "prometheus",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

"""Alerts, dashboards and documents name what is there: metrics, runbook entries, tests."""

from __future__ import annotations

import json
import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from ryzanstein_coordinator.cluster_metrics import families
from ryzanstein_coordinator.metrics import Metrics

ROOT = Path(__file__).parents[3]
RULES = (ROOT / "deploy/prometheus/ryzanstein.rules.yml").read_text(encoding="utf-8")
RULE_TESTS = (ROOT / "deploy/prometheus/ryzanstein.rules.test.yml").read_text(encoding="utf-8")
GRAFANA = (ROOT / "deploy/grafana/ryzanstein.json").read_text(encoding="utf-8")
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
OBSERVABILITY = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
ALERTS = re.findall(r"- alert: (\w+)", RULES)


def metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name as Prometheus has it → kind and labels, of everything that /metrics can hold."""
    known: dict[str, tuple[str, tuple[str, ...]]] = {}
    registry = CollectorRegistry()
    Metrics(registry)
    for collector in registry._collector_to_names:
        for family in collector.collect():
            suffix = "_total" if family.type == "counter" else ""
            known[family.name + suffix] = (family.type, tuple(getattr(collector, "_labelnames", ())))
    for family in families().values():
        suffix = "_total" if family.type == "counter" else ""
        known[family.name + suffix] = (family.type, tuple(family._labelnames))
    return known


def anchors(document: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_alert_has_an_entry_in_the_runbook_and_a_test() -> None:
    urls = re.findall(r"runbook_url: docs/runbook\.md#(\S+)", RULES)
    assert len(urls) == len(ALERTS) > 15
    assert set(urls) <= anchors(RUNBOOK)
    for alert in ALERTS:
        assert f"`{alert}`" in RUNBOOK
        assert re.search(rf"alertname: {alert}\n        exp_alerts:", RULE_TESTS), (
            f"{alert} never fires in a test"
        )


def test_links_within_the_documents_lead_somewhere() -> None:
    for document in (RUNBOOK, OBSERVABILITY):
        assert set(re.findall(r"\]\(#([^)]+)\)", document)) <= anchors(document)
    assert set(re.findall(r"\]\(runbook\.md#([^)]+)\)", OBSERVABILITY)) <= anchors(RUNBOOK)


def test_rules_dashboard_and_runbook_name_metrics_that_exist() -> None:
    known = set(metrics())
    for text in (RULES, RULE_TESTS, GRAFANA, RUNBOOK):
        for name in re.findall(r"ryzanstein_[a-z_]+", text):
            plain = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in known or plain in known, name


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(ryzanstein_\w+)` \| (\w+) \| ([^|]*) \|", OBSERVABILITY, re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"\w+", labels))) for name, kind, labels in rows}
    assert documented == metrics()


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    dashboard = json.loads(GRAFANA)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(panel["type"] == "row" or panel["targets"] for panel in panels)
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {
        "datasource",
        "job",
        "instance",
    }

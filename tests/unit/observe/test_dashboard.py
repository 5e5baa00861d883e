"""Queries of the dashboard and of the alerts ask for metrics and labels that exist."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from testing.services import program
from tests.unit.observe.test_metrics import ASKED, LABELS
from vault.observe.metrics import REGISTRY
from vault.settings.config import ROOT

DASHBOARD = json.loads((ROOT / "deploy/grafana/secure-vault.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
SAMPLES = ASKED | {family.name + suffix for family in REGISTRY.collect() for suffix in SUFFIXES[family.type]}


def queries() -> list[Any]:
    panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
    alerts = [(rule["alert"], rule["expr"]) for group in ALERTS["groups"] for rule in group["rules"]]
    return [pytest.param(query, id=f"{title} {number}") for number, (title, query) in enumerate(panels + alerts)]


@pytest.mark.parametrize("query", queries())
def test_a_query_names_metrics_and_labels_that_exist(query: str) -> None:
    labels = set(re.findall(r"[{,]\s*(\w+)(?:=|!)", query))
    labels |= {name.strip() for group in re.findall(r"\bby \(([^)]*)\)", query) for name in group.split(",")}

    assert set(re.findall(r"\bvault_\w+", query)) <= SAMPLES
    assert labels <= LABELS | {"job", "state"}


def test_every_metric_is_on_the_dashboard() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])

    assert [family.name for family in REGISTRY.collect() if family.name not in shown] == []


def test_prometheus_understands_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    promtool = program("promtool", package="prometheus")
    written = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(written)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    done = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout

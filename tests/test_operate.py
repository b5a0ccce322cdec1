"""The files for Prometheus and Grafana: valid PromQL over metrics that exist, and a row in the docs for each alert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from afterwords.server.metrics import Metrics
from tests.e2e.served import serving

ROOT: Final = Path(__file__).parents[1]
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
RULES: Final[list[dict[str, Any]]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "deploy" / "grafana" / "afterwords.json").read_text("utf-8"))
QUERIES: Final = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
OF_PROMETHEUS: Final = {"instance", "job"}
SUFFIXES: Final = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "gauge": ("",),
    "info": ("_info",),
}


def selectors(query: str) -> Iterator[promql_parser.VectorSelector]:
    """Yield the selectors of an expression, with the variables of Grafana replaced."""
    parsed = promql_parser.parse(query.replace("$__rate_interval", "5m").replace("$instance", ".*"))
    waiting: list[Any] = [parsed]
    while waiting:
        part = waiting.pop()
        if isinstance(part, promql_parser.VectorSelector):
            yield part
        waiting += [
            inner
            for name in ("lhs", "rhs", "expr", "vector_selector", "vs", "param")
            if (inner := getattr(part, name, None)) is not None
        ]
        waiting += getattr(part, "args", None) or []


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names of all metrics of a server."""
    with serving(tmp_path_factory.mktemp("operate") / "home", {"AFTERWORDS_WORKERS": "0"}) as served:
        text = httpx.get(f"{served.url}/metrics").text
    families = text_string_to_metric_families(text)
    return {"up", *(f"{family.name}{suffix}" for family in families for suffix in SUFFIXES[family.type])}


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in RULES), *QUERIES])
def test_query_is_valid_and_its_metrics_exist(query: str, metrics: set[str]) -> None:
    found = list(selectors(query))
    assert found
    assert {selector.name for selector in found} <= metrics
    labels = {metric.name: {*metric.labels, *OF_PROMETHEUS} for metric in Metrics()}
    for selector in found:
        known = labels.get(re.sub("_(total|bucket|sum|count)$", "", str(selector.name)), OF_PROMETHEUS)
        assert {matcher.name for matcher in selector.matchers.matchers} <= known


def test_every_rule_is_complete_and_documented() -> None:
    docs = (ROOT / "docs" / "operate.md").read_text("utf-8")
    names = [rule["alert"] for rule in RULES]
    assert names == re.findall(r"^\| `(Afterwords\w+)` \|", docs, re.M)
    for rule in RULES:
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


def test_prometheus_reads_the_rules_and_this_servers_port() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    assert all((PROMETHEUS / name).is_file() for name in config["rule_files"])
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:7860"]}]


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

"""What `sidecar dashboards` writes, and what it leaves alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar.cli import main
from sidecar.config.load import Loaded, load
from sidecar.dashboards import rules
from sidecar.dashboards.facts import Facts, facts_of
from sidecar.dashboards.files import generate
from tests.support.processes import Sidecar, TinyApp, free_port

ROOT = Path(__file__).parents[2]
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


@pytest.fixture
def facts(shipped: Loaded) -> Facts:
    return facts_of(shipped)


@pytest.fixture
def bare(tmp_path: Path) -> Loaded:
    """A sidecar with no policy file, and a namespace of its own."""
    file = tmp_path / "sidecar.yaml"
    file.write_text("metrics: {namespace: shop}\n", encoding="utf-8")
    return load(file, {})


def expressions(made: dict[str, str]) -> list[str]:
    """Every query of dashboards and rules."""
    found: list[str] = []
    for name, text in made.items():
        if name.endswith(".json"):
            board = json.loads(text)
            found += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
            found += [it["query"]["query"] for it in board["templating"]["list"] if it["type"] == "query"]
        elif name.endswith(".rules.yml"):
            groups = yaml.safe_load(text)["groups"]
            found += [rule["expr"] for group in groups for rule in group["rules"]]
    return found


def recorded(made: dict[str, str]) -> set[str]:
    text = next(text for name, text in made.items() if name.endswith(".rules.yml"))
    return {
        rule["record"]
        for group in yaml.safe_load(text)["groups"]
        for rule in group["rules"]
        if "record" in rule
    }


async def test_every_query_names_metrics_that_a_scrape_has(tmp_path: Path) -> None:
    """Of dashboards and rules alike, against the page of a running sidecar with the shipped policies."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, ca={"dir": "ca"}, metrics={"namespace": "shop"})
    config = yaml.safe_load((tmp_path / "sidecar.yaml").read_text())
    config["listen"]["egress"] = "127.0.0.1:0"
    config["cache"] = {"redis": f"redis://127.0.0.1:{free_port()}"}
    config["policies"] = [str(ROOT / "policies/*.yaml")]
    (tmp_path / "sidecar.yaml").write_text(yaml.safe_dump(config))
    made = generate(load(tmp_path / "sidecar.yaml", {}))
    try:
        await app.start()
        await sidecar.start()
        page = await sidecar.page()
    finally:
        await sidecar.end()
        await app.end()
    there = {
        family.name + suffix
        for family in text_string_to_metric_families(page)
        for suffix in SUFFIXES[family.type]
    } | recorded(made)
    named = {name for text in expressions(made) for name in re.findall(r"(?:\w+:)?\bshop_\w+(?::\w+)?", text)}
    assert len(named) > 30
    assert sorted(named - there) == []


def test_every_alert_leads_to_the_runbook(facts: Facts) -> None:
    """With a severity, a line of what to do first, and a heading of docs/runbook.md."""
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    headings = {line.removeprefix("## ").lower() for line in text.splitlines() if line.startswith("## ")}
    alerts = rules.alerts(facts)
    assert [alert.name for alert in alerts if alert.anchor not in headings] == []
    assert all(alert.runbook and alert.severity for alert in alerts)


def test_the_runbook_has_no_entry_for_nothing(facts: Facts) -> None:
    """Each of its alerts exists."""
    text = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", text, flags=re.MULTILINE)
    assert sorted(headings) == sorted({it.heading or it.name for it in rules.alerts(facts)})


def test_thresholds_are_those_of_the_policies(facts: Facts) -> None:
    """Of a deadline of 30 s four fifths; of what may take longer than is measured, what is."""
    found = dict(facts.by_threshold())
    assert "matching" in found[24.0]
    assert found[54.0] == ("intelligent-matching", "chat", "openai-other")
    assert {it.policy: it.slow for it in facts.upstreams} == {"google-maps": 1.92, "openai": 48.0}


def test_routes_that_mean_their_503_do_not_alert(facts: Facts) -> None:
    """A route that answers by itself is left out of the shares of errors."""
    assert "cv-parser" not in facts.of_clients()
    [ratio] = [it.expr for it in rules.alerts(facts) if it.name == "RouteErrorRatio"]
    assert 'route!~"job-parser|cv-parser"' in ratio


def test_what_is_not_in_force_has_no_rule(bare: Loaded) -> None:
    """No breaker, no cache, no provider: no alert and no dashboard of them."""
    made = generate(bare)
    names = {alert.name for alert in rules.alerts(facts_of(bare))}
    assert {"SidecarDown", "HighErrorRate"} <= names
    assert not names & {"CircuitBreakerOpen", "LowCacheHitRate", "QuotaLow", "FallbackShare"}
    assert "grafana/shop-cache.json" not in made


def test_batches_are_watched_where_there_is_a_store(bare: Loaded, tmp_path: Path) -> None:
    """Which there is unless it is turned off."""
    watched = {alert.name for alert in rules.alerts(facts_of(bare)) if alert.name.startswith("Batch")}
    assert watched == {"BatchLinesFailing", "BatchStalled", "BatchProcessingBacklog", "BatchStoreDown"}
    assert "grafana/shop-batches.json" in generate(bare)
    file = tmp_path / "without.yaml"
    file.write_text("batch: {store: off}\n", encoding="utf-8")
    without = load(file, {})
    assert not any("Batch" in alert.name for alert in rules.alerts(facts_of(without)))
    assert not any("batch" in text for text in generate(without).values())


def test_the_namespace_is_that_of_the_metrics(bare: Loaded) -> None:
    """In every name, of files too, so that two sidecars' fit in one directory."""
    made = generate(bare)
    assert all(Path(name).name.startswith("shop") for name in made)
    assert not any("nextvision" in text for text in made.values())


def run(directory: Path, *more: str) -> int:
    return main(["dashboards", "-c", str(ROOT / "sidecar.yaml"), str(directory), *more])


def content(directory: Path) -> dict[str, Any]:
    return {
        str(file.relative_to(directory)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in directory.rglob("*")
        if file.is_file()
    }


def test_again_it_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are as they should be are not even written."""
    assert run(tmp_path) == 0
    before = content(tmp_path)
    assert len(before) == 7
    capsys.readouterr()
    assert run(tmp_path) == 0
    assert content(tmp_path) == before
    assert {line.partition(":")[0] for line in capsys.readouterr().out.splitlines()} == {"kept"}


@pytest.mark.parametrize("name", ["prometheus/nextvision.rules.yml", "grafana/nextvision-overview.json"])
def test_what_somebody_else_wrote_stays(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was not generated, or was changed since; nothing at all is written then."""
    assert run(tmp_path) == 0
    file = tmp_path / name
    changed = file.read_text(encoding="utf-8").replace("5m", "7m", 1).replace("10s", "30s", 1)
    file.write_text(changed, encoding="utf-8")
    (tmp_path / "grafana/nextvision-routes.json").unlink()
    capsys.readouterr()
    assert run(tmp_path) == 1
    assert f"{file} was not generated, or was changed by hand" in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == changed
    assert not (tmp_path / "grafana/nextvision-routes.json").exists()
    assert run(tmp_path, "--force") == 0
    assert file.read_text(encoding="utf-8") != changed


def test_our_own_that_is_no_longer_in_force_goes(tmp_path: Path) -> None:
    """The dashboard of a cache that is gone; but not that of another namespace, nor a foreign file."""
    config, directory = tmp_path / "sidecar.yaml", tmp_path / "out"
    config.write_text("policies: [p.yaml]\n", encoding="utf-8")
    policy = tmp_path / "p.yaml"
    policy.write_text("name: p\nroutes: [{name: all, cache: {}}]\n", encoding="utf-8")
    assert main(["dashboards", "-c", str(config), str(directory)]) == 0
    assert main(["dashboards", "-c", str(config), "--set", "metrics.namespace=shop", str(directory)]) == 0
    (directory / "grafana/nextvision-mine.json").write_text("{}", encoding="utf-8")
    policy.write_text("name: p\nroutes: [{name: all}]\n", encoding="utf-8")
    assert main(["dashboards", "-c", str(config), str(directory)]) == 0
    names = {file.name for file in (directory / "grafana").iterdir()}
    assert "nextvision-cache.json" not in names
    assert {"nextvision-overview.json", "nextvision-mine.json", "shop-cache.json"} <= names

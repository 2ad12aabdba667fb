"""The rules as Prometheus takes them, and an alert from real traffic."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest
import yaml

from sidecar.config.load import Loaded, load
from sidecar.dashboards.files import generate
from tests.support.processes import Sidecar, free_port
from tests.support.prometheus import Prometheus

pytestmark = pytest.mark.system


def written(made: dict[str, str], folder: Path) -> Path:
    for name, text in made.items():
        file = folder / Path(name).name
        file.write_text(text, encoding="utf-8")
    return folder


def promtool(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_right(shipped: Loaded, tmp_path: Path) -> None:
    """`promtool check rules` has nothing to say."""
    promtool(written(generate(shipped), tmp_path), "check", "rules", "nextvision.rules.yml")


def test_every_rule_fires_and_is_quiet(shipped: Loaded, tmp_path: Path) -> None:
    """`promtool test rules`: of every alerting rule a case of each kind."""
    folder = written(generate(shipped), tmp_path)
    groups = yaml.safe_load((folder / "nextvision.rules.yml").read_text())["groups"]
    tests = yaml.safe_load((folder / "nextvision.tests.yml").read_text())["tests"]
    alerting = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    for kind in ("fires", "is quiet"):
        assert sorted(it["name"] for it in tests if it["name"].endswith(f" {kind}")) == sorted(
            f"{name} {kind}" for name in alerting
        )
    promtool(folder, "test", "rules", "nextvision.tests.yml")


def test_every_query_of_a_dashboard_is_promql(shipped: Loaded, tmp_path: Path) -> None:
    """Prometheus itself parses each, with the variables of Grafana filled in."""
    exprs = [
        target["expr"].replace("$__rate_interval", "5m")
        for name, text in generate(shipped).items()
        if name.endswith(".json")
        for panel in json.loads(text)["panels"]
        for target in panel["targets"]
    ]
    assert len(exprs) > 50
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")
    promtool(tmp_path, "check", "rules", file.name)


@pytest.mark.timeout(120)
async def test_an_alert_fires_from_real_traffic(tmp_path: Path) -> None:
    """The app is down: its breaker opens, and the Prometheus that scrapes the sidecar fires for it alone."""
    policy = {
        "name": "app",
        "routes": [{"name": "all", "circuit_breaker": {"consecutive": 3, "open_for": "60s"}}],
    }
    sidecar = Sidecar(tmp_path, free_port(), policy)
    folder = tmp_path / "prometheus"
    folder.mkdir()
    made = generate(load(tmp_path / "sidecar.yaml", {}))
    written({name: hurried(text) for name, text in made.items() if name.endswith(".rules.yml")}, folder)
    prometheus = Prometheus(folder, sidecar.admin_port)
    try:
        await sidecar.start()
        await prometheus.start()
        async with aiohttp.ClientSession() as http:
            firing: set[str] = set()
            until = time.monotonic() + 60
            while "CircuitBreakerOpen" not in firing and time.monotonic() < until:
                async with http.get(sidecar.url + "/x"):
                    pass
                await asyncio.sleep(0.3)
                alerts = (await prometheus.get("alerts"))["alerts"]
                firing = {it["labels"]["alertname"] for it in alerts if it["state"] == "firing"}
    finally:
        await prometheus.end()
        await sidecar.end()
    assert "CircuitBreakerOpen" in firing
    assert not firing & {"SidecarDown", "EventLoopLag", "ConnectionsNearLimit"}


def hurried(text: str) -> str:
    """The rules, with nothing to wait for."""
    rules = yaml.safe_load(text)
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "2s"
    return yaml.safe_dump(rules)

"""`/monitoring/performance`: what the page makes of the counts."""

from __future__ import annotations

from typing import Any

import jsonschema
import orjson
import pytest

from sidecar.admin.pages import Pages
from sidecar.admin.performance_pages import PerformancePages
from sidecar.telemetry.health import Health
from sidecar.telemetry.history import History, HistoryKeeper
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.system import System
from tests.support.clock import ManualClock


class Minutes:
    """Two routes of clients, one of the app's calls."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.metrics.upstream("maps").external = True
        self.matching = self.metrics.route("matching", "app")
        self.parsing = self.metrics.route("parsing", "app")
        self.geocode = self.metrics.route("geocode", "maps")
        history = History(self.metrics, self.clock.now())
        self.keeper = HistoryKeeper(history, self.clock)
        health = Health(self.clock, system=System(self.clock), probe=None)
        self.subject = PerformancePages(self.metrics, history, health, self.clock)

    async def page(self) -> dict[str, Any]:
        routes = list(self.subject.routes())
        page = await Pages(routes).get("/monitoring/performance")
        assert page is not None
        shown: dict[str, Any] = orjson.loads(page.body)
        jsonschema.Draft202012Validator(routes[0].answers["200"].content["application/json"]).validate(shown)
        return shown


async def test_each_route_has_its_last_minutes() -> None:
    """Rate, errors, percentiles, hit ratio and fallbacks, each window with what came in it."""
    minutes = Minutes()
    minutes.keeper.start()
    for _ in range(100):
        minutes.matching.record("GET", 200, 0.004)
    await minutes.clock.advance(120)
    for number in range(60):
        minutes.matching.record("GET", 503 if number < 6 else 200, 0.04)
        minutes.matching.cached("hit" if number % 4 == 0 else "miss")
    minutes.matching.fell_back("respond")
    await minutes.clock.advance(30)
    routes = (await minutes.page())["routes"]
    last = routes["matching"]["1m"]
    assert {name: last[name] for name in ("seconds", "requests", "rate", "errors", "error_percent")} == {
        "seconds": 60.0,
        "requests": 60,
        "rate": 1.0,
        "errors": 6,
        "error_percent": 10.0,
    }
    assert (last["hit_ratio"], last["fallbacks"]) == (0.25, {"respond": 1})
    assert 25 < last["p50_ms"] <= last["p95_ms"] <= last["p99_ms"] <= 50
    all_of_it = routes["matching"]["5m"]
    assert (all_of_it["seconds"], all_of_it["requests"]) == (150.0, 160)
    assert all_of_it["p50_ms"] < 5
    assert all_of_it == routes["matching"]["15m"]
    await minutes.keeper.close()


async def test_clients_and_the_apps_calls_are_summed_apart() -> None:
    """A request that makes the app call out is not counted as two."""
    minutes = Minutes()
    minutes.matching.record("GET", 200, 0.004)
    minutes.parsing.record("POST", 500, 0.4)
    minutes.parsing.fell_back("stale")
    minutes.geocode.record("GET", 200, 0.1)
    await minutes.clock.advance(10)
    totals = (await minutes.page())["totals"]
    assert {plane: windows["1m"]["requests"] for plane, windows in totals.items()} == {
        "ingress": 2,
        "egress": 1,
    }
    assert (totals["ingress"]["1m"]["errors"], totals["ingress"]["1m"]["fallbacks"]) == (1, {"stale": 1})
    assert totals["ingress"]["1m"]["p99_ms"] == pytest.approx(500, rel=0.05)


async def test_without_traffic_there_is_nothing_to_divide() -> None:
    """No share and no percentile is made up; a window is never without length."""
    last = (await Minutes().page())["routes"]["matching"]["1m"]
    assert (last["requests"], last["rate"]) == (0, 0.0)
    assert [last[name] for name in ("error_percent", "hit_ratio", "p50_ms", "p99_ms")] == [None] * 4

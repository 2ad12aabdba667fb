"""However many paths, methods and hosts clients make up, the number of series stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sidecar.app import App
from sidecar.clock import SystemClock
from sidecar.config.load import load
from sidecar.exchange import AbsoluteRequest, Exchange, Request
from sidecar.headers import Line
from sidecar.telemetry.reasons import METHODS

REQUESTS = 100_000
POLICY = {
    "name": "shop",
    "routes": [
        {
            "name": "items",
            "match": {"path": "/items/*"},
            "rate_limit": "off",
            "respond": {"status": 410, "json": {"gone": True}},
        }
    ],
}
CONFIG = {
    "policies": ["shop.yaml"],
    "ca": {"dir": "ca"},
    "logging": {"access": False},
    # What no route matches is refused rather than sent to an app that is not there.
    "limits": {"rate_limit": {"rate": "1/h", "burst": 1}},
    "egress": {"unlisted": "deny"},
}


@pytest.fixture
async def app(tmp_path: Path) -> App:
    """All of a sidecar but its listeners, which know no route."""
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(POLICY))
    (tmp_path / "sidecar.yaml").write_text(yaml.safe_dump(CONFIG))
    return App(load(tmp_path / "sidecar.yaml", {}), SystemClock())


async def ask(app: App, request: Request) -> int:
    """One request through routing and the pipeline, its answer sent."""
    exchange = Exchange(request, "192.0.2.7", app.clock.now())
    serving = app.in_force
    route = serving.egress.proxied if isinstance(request, AbsoluteRequest) else serving.ingress.route
    response = await route(exchange)(exchange)
    assert exchange.on_sent is not None
    exchange.on_sent(exchange, response, "done")
    return response.status


def series(app: App) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    page, _ = app.collector.render()
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def made_up(number: int, method: str) -> Request:
    """A request like no other: to a route, to none, or a call to a host that no policy lists."""
    host = b"h%d.example" % number
    path = (b"/items/%d" if number % 3 == 0 else b"/made/%d/up") % number
    lines = [Line(b"Host", host)]
    if number % 3 == 2:
        return AbsoluteRequest(method, path, lines, host=host)
    return Request(method, path, lines, host=host)


def usual() -> Iterator[Request]:
    """Every kind of request there is, once with each method that is counted by its name."""
    for method in (*METHODS, "MADE-UP"):
        for number in range(3):
            yield made_up(number, method)


async def test_clients_make_no_series(app: App) -> None:
    """100,000 distinct paths, methods and hosts through routing, layers and metrics; each is counted."""
    for request in usual():
        await ask(app, request)
    before = series(app)
    counted = sum(cell[0] for cells in app.metrics.routes.values() for cell in cells.requests.values())
    statuses = [await ask(app, made_up(number, f"M{number}")) for number in range(REQUESTS)]
    assert {status: statuses.count(status) for status in set(statuses)} == {
        410: REQUESTS // 3 + 1,
        429: REQUESTS // 3,
        403: REQUESTS // 3,
    }
    assert series(app) == before
    assert len(before) < 1000
    assert counted + REQUESTS == sum(
        cell[0] for cells in app.metrics.routes.values() for cell in cells.requests.values()
    )

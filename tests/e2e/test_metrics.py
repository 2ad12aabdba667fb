"""Counters against the truth: what the client got, what the app saw, and what a Prometheus holds."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

from tests.support.processes import Sidecar, total
from tests.support.prometheus import Prometheus

parse_openmetrics: Callable[[str], Iterator[Metric]] = openmetrics_parser.text_string_to_metric_families
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
POLICY = {
    "name": "shop",
    "routes": [
        {
            "name": "flaky",
            "match": {"path": "/flaky/*"},
            "retry": {"attempts": 2, "backoff": {"base": "1ms", "max": "2ms"}, "budget": "off"},
        },
        {"name": "kept", "match": {"path": "/kept/*"}, "cache": {"ttl": "1m"}},
        {
            "name": "down",
            "match": {"path": "/down/*"},
            "fallback": [{"respond": {"json": {"later": True}}}],
        },
    ],
}


class Shop:
    """An app that counts: of each flaky path the first request fails, what is down always does."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    async def answer(self, request: web.Request) -> web.Response:
        kind = request.path.split("/")[1]
        self.seen[kind] += 1
        self.asked[request.path] += 1
        if kind == "down" or (kind == "flaky" and self.asked[request.path] == 1):
            return web.Response(status=503)
        return web.Response(status=404 if kind == "lost" else 200)


@pytest.fixture
async def shop() -> AsyncIterator[tuple[Shop, int]]:
    shop = Shop()
    application = web.Application()
    application.router.add_get("/{tail:.*}", shop.answer)
    async with TestServer(application) as server:
        assert server.port is not None
        yield shop, server.port


@pytest.fixture
async def sidecar(tmp_path: Path, shop: tuple[Shop, int]) -> AsyncIterator[Sidecar]:
    sidecar = Sidecar(tmp_path, shop[1], POLICY)
    await sidecar.start()
    yield sidecar
    await sidecar.end()


async def drive(url: str) -> Counter[tuple[str, int]]:
    """A run with retries, hits and fallbacks, twelve at a time; what the client got, by kind and status."""
    paths = [f"/flaky/{number}" for number in range(40)]
    paths += [f"/kept/{number % 10}" for number in range(70)]
    paths += [f"/down/{number}" for number in range(30)]
    paths += [f"/lost/{number}" for number in range(20)]
    got: Counter[tuple[str, int]] = Counter()
    gate = asyncio.Semaphore(12)
    async with aiohttp.ClientSession(headers={"traceparent": TRACEPARENT}) as http:

        async def send(path: str) -> None:
            async with gate, http.get(url + path) as reply:
                await reply.read()
                got[path.split("/")[1], reply.status] += 1

        # One at a time first: ten that come together for what nobody has yet are one call.
        for path in dict.fromkeys(paths[40:110]):
            await send(path)
        async with asyncio.TaskGroup() as group:
            for path in [*paths[:40], *paths[50:]]:
                group.create_task(send(path))
    return got


async def test_counters_are_what_was_sent(sidecar: Sidecar, shop: tuple[Shop, int]) -> None:
    """Exactly, by route and status, for clients and for the app alike; a strict parser takes the page."""
    app, _ = shop
    got = await drive(sidecar.url)
    assert got == {("flaky", 200): 40, ("kept", 200): 70, ("down", 200): 30, ("lost", 404): 20}
    assert app.seen == {"flaky": 80, "kept": 10, "down": 30, "lost": 20}
    async with (
        aiohttp.ClientSession() as http,
        http.get(sidecar.admin + "/metrics", headers=OPENMETRICS) as page,
    ):
        assert page.content_type == "application/openmetrics-text"
        families = {family.name: family for family in parse_openmetrics(await page.text())}

    def counts(name: str, *labels: str) -> dict[Any, float]:
        summed: Counter[Any] = Counter()
        for sample in families["nextvision_" + name].samples:
            if sample.name.endswith(("_total", "_count")):
                key = tuple(sample.labels[label] for label in labels)
                summed[key[0] if len(key) == 1 else key] += int(sample.value)
        return {key: value for key, value in summed.items() if value}

    assert counts("api_requests", "route", "method", "status") == {
        ("flaky", "GET", "200"): 40,
        ("kept", "GET", "200"): 70,
        ("down", "GET", "200"): 30,
        ("unmatched", "GET", "404"): 20,
    }
    assert counts("api_request_duration_seconds", "route") == {
        "flaky": 40,
        "kept": 70,
        "down": 30,
        "unmatched": 20,
    }
    assert counts("retries", "route") == {"flaky": 40}
    assert counts("cache_operations", "route", "outcome") == {("kept", "miss"): 10, ("kept", "hit"): 60}
    assert counts("fallbacks", "route", "rung") == {("down", "respond"): 30}
    attempts = counts("upstream_attempts", "upstream", "verdict")
    assert attempts == {("app", "ok"): 50, ("app", "transient"): 70, ("app", "client"): 20}
    assert sum(attempts.values()) == app.seen.total()
    exemplars = [
        it.exemplar for it in families["nextvision_api_request_duration_seconds"].samples if it.exemplar
    ]
    assert {it.labels["trace_id"] for it in exemplars} == {TRACEPARENT.split("-")[1]}


@pytest.mark.system
@pytest.mark.timeout(120)
async def test_a_prometheus_holds_the_counters(sidecar: Sidecar, tmp_path: Path) -> None:
    """A real one scrapes the sidecar, and comes to hold exactly what was sent, with a trace to look at."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    prometheus = Prometheus(folder, sidecar.admin_port)
    got = await drive(sidecar.url)
    await prometheus.start()
    try:
        held: dict[str, float] = {}
        until = time.monotonic() + 60
        while sum(held.values()) < got.total() and time.monotonic() < until:
            await asyncio.sleep(0.25)
            held = await prometheus.query(
                'label_replace(sum by (route) (nextvision_api_requests_total), "by", "$1", "route", "(.*)")'
            )
        assert held == {"flaky": 40.0, "kept": 70.0, "down": 30.0, "unmatched": 20.0}
        assert await prometheus.query("up") == {"": 1.0}
        assert await prometheus.query("sum(nextvision_retries_total)") == {"": 40.0}
        assert await prometheus.query("sum(nextvision_api_request_duration_seconds_count)") == {"": 160.0}
        now = time.time()
        found = await prometheus.get(
            "query_exemplars",
            query="nextvision_api_request_duration_seconds_bucket",
            start=str(now - 600),
            end=str(now + 60),
        )
        traces = {it["labels"]["trace_id"] for one in found for it in one["exemplars"]}
        assert traces == {TRACEPARENT.split("-")[1]}
        assert total(await sidecar.metrics(), "nextvision_api_requests_total") == got.total()
    finally:
        await prometheus.end()

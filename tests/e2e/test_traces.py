"""Traces as a collector gets them: real listeners, a real app that calls out, OTLP over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web

from tests.support.collector import Collector, Seen
from tests.support.processes import Sidecar, free_port, total, until_connects

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
SPANS = "nextvision_trace_spans_total"
RETRY = {"attempts": 2, "backoff": {"strategy": "fixed", "base": "0ms"}}


class Outside:
    """The app, which passes `traceparent` on, and the provider that it calls, which fails at first."""

    def __init__(self) -> None:
        self.egress = free_port()
        self.passes_on = True
        self.failures = 1
        self.heard: list[str] = []
        """`traceparent` as the app, then the provider, got it."""
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/go/{id}", self._app)
        app.router.add_get("/maps", self._provider)
        app.router.add_get("/kept", self._kept)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    async def _app(self, request: web.Request) -> web.Response:
        told = request.headers.get("traceparent", "")
        self.heard.append(told)
        headers = {"traceparent": told} if self.passes_on and told else {}
        url = f"http://127.0.0.1:{self.egress}/provider/maps?key=S3CR3T&q=a"
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as reply:
            return web.Response(status=reply.status, text=await reply.text())

    async def _provider(self, request: web.Request) -> web.Response:
        self.heard.append(request.headers.get("traceparent", ""))
        self.failures -= 1
        return web.Response(status=503 if self.failures >= 0 else 200, text="there")

    async def _kept(self, request: web.Request) -> web.Response:
        return web.Response(text="kept")


@pytest.fixture
def outside() -> Outside:
    return Outside()


@asynccontextmanager
async def traced(folder: Path, outside: Outside, **tracing: object) -> AsyncIterator[Sidecar]:
    """The sidecar between the two."""
    site = {
        "name": "site",
        "direction": "ingress",
        "routes": [
            {"name": "go", "match": {"path": "/go/{id}"}},
            {"name": "kept", "match": {"path": "/kept"}, "cache": {"ttl": "1m"}},
        ],
    }
    provider = {
        "name": "provider",
        "direction": "egress",
        "hosts": ["maps.example"],
        "upstream": f"http://127.0.0.1:{outside.port}",
        "routes": [{"name": "maps", "match": {"path": "/maps"}, "retry": RETRY, "circuit_breaker": {}}],
    }
    sidecar = Sidecar(folder, outside.port, site, tracing=tracing, ca={"dir": "ca"})
    config = yaml.safe_load((folder / "sidecar.yaml").read_text())
    config["listen"]["egress"] = f"127.0.0.1:{outside.egress}"
    config["policies"].append("provider.yaml")
    (folder / "sidecar.yaml").write_text(yaml.safe_dump(config))
    (folder / "provider.yaml").write_text(yaml.safe_dump(provider))
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    try:
        yield sidecar
        assert await sidecar.end() == 0
    finally:
        sidecar.send(9)


async def get(sidecar: Sidecar, path: str, traceparent: str | None = None) -> int:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    async with aiohttp.ClientSession() as http, http.get(sidecar.url + path, headers=headers) as reply:
        await reply.read()
        return reply.status


async def until_lost(sidecar: Sidecar, count: int) -> None:
    for _ in range(200):
        if total(await sidecar.metrics(), SPANS, outcome="failed") >= count:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("not counted")


def by_name(spans: list[Seen]) -> dict[tuple[str, str], list[Seen]]:
    """By plane or upstream, and kind; attempts in their order."""
    found: dict[tuple[str, str], list[Seen]] = {}
    for span in spans:
        plane = span.attributes.get("sidecar.plane") or span.attributes["sidecar.upstream"]
        found.setdefault((str(plane), span.kind), []).append(span)
    for several in found.values():
        several.sort(key=lambda span: int(span.attributes.get("http.request.resend_count", 0)))
    return found


async def test_spans_form_one_tree_over_both_planes(tmp_path: Path, outside: Outside) -> None:
    """Client's span, ingress, its attempt, the app's call on egress, its two attempts: each below the last.

    What app and provider see in `traceparent` are the ids of the attempts.
    """
    async with outside.running(), Collector() as collector:
        settings = {"otlp": collector.url, "service": "shop", "headers": {"x-token": "S3CR3T"}, "ratio": "0%"}
        async with traced(tmp_path, outside, **settings) as sidecar:
            assert await get(sidecar, "/go/7", f"00-{TRACE}-{CALLER}-01") == 200
            spans = by_name(await collector.until(5))
        [ingress], [to_app] = spans["ingress", "SERVER"], spans["app", "CLIENT"]
        [egress], [first, second] = spans["egress", "SERVER"], spans["provider", "CLIENT"]
        assert {span.trace for span in collector.spans} == {TRACE}
        assert ingress.parent == CALLER
        assert to_app.parent == ingress.id
        assert egress.parent == to_app.id
        assert first.parent == second.parent == egress.id
        assert [told.split("-")[2] for told in outside.heard] == [to_app.id, first.id, second.id]
        assert len({span.id for span in collector.spans}) == 5
        assert ingress.name == "GET /go/{id}"
        assert ingress.attributes["http.route"] == "/go/{id}"
        assert (ingress.attributes["url.path"], ingress.attributes["http.response.status_code"]) == (
            "/go/7",
            200,
        )
        assert (first.attributes["http.response.status_code"], first.failed) == (503, True)
        assert (second.attributes["http.response.status_code"], second.failed) == (200, False)
        assert second.attributes["http.request.resend_count"] == 1
        assert "sidecar.circuit_breaker" in egress.events
        assert "sidecar.retry" in egress.events
        assert egress.attributes["sidecar.breaker"] == "closed"
        assert second.attributes["network.peer.address"] == "127.0.0.1"
        assert egress.attributes["url.query"] == "key=***&q=a"
        assert "S3CR3T" not in repr(collector.spans)
        assert ingress.resource["service.name"] == "shop"
        assert ingress.seconds >= to_app.seconds > 0
        assert collector.headers[0]["x-token"] == "S3CR3T"


async def test_what_the_cache_did_is_on_the_span(tmp_path: Path, outside: Outside) -> None:
    """A miss has an attempt below it, a hit none; both say so."""
    async with outside.running(), Collector() as collector:
        async with traced(tmp_path, outside, otlp=collector.url, ratio="100%") as sidecar:
            for _ in range(2):
                assert await get(sidecar, "/kept") == 200
            spans = by_name(await collector.until(3))
        miss, hit = spans["ingress", "SERVER"]
        [attempt] = spans["app", "CLIENT"]
        assert (miss.attributes["sidecar.cache"], hit.attributes["sidecar.cache"]) == ("miss", "hit")
        assert "sidecar.cache" in miss.events
        assert attempt.parent == miss.id
        assert not miss.parent
        assert miss.trace != hit.trace
        log = {line["trace_id"] for line in sidecar.requests()}
        assert log == {miss.trace, hit.trace}


async def test_flag_and_ratio_decide(tmp_path: Path, outside: Outside) -> None:
    """No span where the flag says no, or chance; the app is told of it either way, and its calls join."""
    outside.failures = 0
    async with outside.running(), Collector() as collector:
        async with traced(tmp_path, outside, otlp=collector.url, ratio="0%") as sidecar:
            assert await get(sidecar, "/go/1", f"00-{TRACE}-{CALLER}-00") == 200
            assert await get(sidecar, "/go/2") == 200
            assert await get(sidecar, "/go/3", f"00-{TRACE}-{CALLER}-01") == 200
            await collector.until(4)
        assert len(collector.spans) == 4
        assert [told[-2:] for told in outside.heard] == ["00", "00", "00", "00", "01", "01"]
        assert len({told.split("-")[1] for told in outside.heard[2:4]}) == 1
        lines = [line["trace_id"] for line in sidecar.requests() if line["component"] == "ingress"]
        assert lines[0] == lines[2] == TRACE


@pytest.mark.parametrize("how", ["refused", "failing"])
async def test_a_dead_collector_harms_nothing(tmp_path: Path, outside: Outside, how: str) -> None:
    """Requests go on at their pace, what is lost is counted, it is said once, and a stop takes no longer."""
    outside.failures = 0
    async with outside.running(), Collector() as collector:
        collector.status = 400
        url = collector.url if how == "failing" else f"http://127.0.0.1:{free_port()}"
        async with traced(tmp_path, outside, otlp=url, ratio="100%") as sidecar:
            loop = asyncio.get_running_loop()
            begin = loop.time()
            for number in range(20):
                assert await get(sidecar, f"/go/{number}") == 200
            assert loop.time() - begin < 10
            if how == "failing":
                await until_lost(sidecar, 40)
            begin = loop.time()
        assert loop.time() - begin < 10
        said = [line for line in sidecar.log() if line["message"].startswith("spans are lost")]
        assert len(said) <= 1
        if how == "failing":
            assert "400" in said[0]["reason"]


async def test_without_a_collector_nothing_is_changed(tmp_path: Path, outside: Outside) -> None:
    """Off: `traceparent` is passed on with a new span id, and none is made."""
    outside.failures = 0
    async with outside.running(), traced(tmp_path, outside) as sidecar:
        assert await get(sidecar, "/go/1") == 200
        assert await get(sidecar, "/go/2", f"00-{TRACE}-{CALLER}-01") == 200
        assert outside.heard[:2] == ["", ""]
        assert {told.split("-")[1] for told in outside.heard[2:]} == {TRACE}
        assert CALLER not in repr(outside.heard)
        assert SPANS not in await sidecar.page()

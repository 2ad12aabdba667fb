"""The dashboard's page and its events, over real sockets; a browser looks at it in tests/e2e."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
import pytest

from sidecar.admin.dashboard_pages import MOST_VIEWERS, Dashboard
from sidecar.admin.recent import MOST
from sidecar.config.load import load
from sidecar.exchange import Exchange, Request
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.sink import Sink
from tests.admin.test_api import LOOPBACK, Admin


class Place:
    """A dashboard on an admin listener, beside an access log that writes to nowhere."""

    def __init__(self) -> None:
        self.admin = Admin()
        self.fd = os.open(os.devnull, os.O_WRONLY)
        self.sink = Sink(self.fd)
        self.log = AccessLog(self.sink, self.admin.clock)
        loaded = load(None, {})
        self.dashboard = Dashboard(
            self.admin.clock,
            metrics=self.admin.metrics,
            history=self.admin.history,
            health=self.admin.health,
            breakers=self.admin.breakers,
            access_log=self.log,
            current=lambda: SimpleNamespace(loaded=loaded, generation=1, since=0.0),
        )

    def served(self, path: str, status: int, **notes: Any) -> None:
        """A request that is over."""
        exchange = Exchange(Request("GET", path.encode(), []), "127.0.0.1", 0.0)
        for name, value in notes.items():
            setattr(exchange, name, value)
        self.log.append(exchange, status, self.admin.clock.now(), "done")


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Place]:
    monkeypatch.chdir(tmp_path)
    place = Place()
    place.admin.health.open()
    await place.admin.start(LOOPBACK, subjects=[place.dashboard])
    yield place
    await place.admin.server.close()
    await place.dashboard.close()
    place.log.close()
    place.sink.close()
    os.close(place.fd)


@pytest.fixture
async def client(place: Place) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{place.admin.server.address}") as session:
        yield session


async def event(response: aiohttp.ClientResponse, kind: str) -> Any:
    """The data of the next event of that kind."""
    while True:
        name = (await response.content.readline()).decode().strip()
        data = await response.content.readline()
        await response.content.readline()
        if name == f"event: {kind}":
            return orjson.loads(data.removeprefix(b"data: "))


async def test_the_page_is_served_whole(client: aiohttp.ClientSession) -> None:
    """All that it names is there, from here alone, under a policy that lets nothing else in."""
    waiting, seen = ["/"], {"/"}
    while waiting:
        path = waiting.pop()
        async with client.get(path) as response:
            assert response.status == 200, path
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            text = await response.text()
        assert " style=" not in text
        assert "<style" not in text
        assert "innerHTML" not in text
        named = re.findall(r'(?:src|rel="stylesheet" href)="([^"]+)"', text)
        named += [f"/dashboard/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)]
        waiting += [it for it in named if it not in seen]
        seen |= set(named)
    assert {"/dashboard/app.js", "/dashboard/style.css", "/dashboard/view.js"} <= seen


async def test_events_carry_the_figures(place: Place, client: aiohttp.ClientSession) -> None:
    """The first at once, then one a second, with what happened meanwhile."""
    place.admin.metrics.route("matching", "app").record("GET", 503, 0.01)
    async with client.get("/admin/events") as response:
        assert response.content_type == "text/event-stream"
        first = await event(response, "state")
        [route] = first["routes"]
        assert (route["route"], route["windows"]["1"]["errors"]) == ("matching", 1)
        assert first["status"] == "unhealthy"
        assert first["troubles"][0]["text"].startswith("The app is down")
        place.admin.metrics.route("matching", "app").record("GET", 200, 0.01)
        second = await event(response, "state")
        assert second["routes"][0]["windows"]["1"]["requests"] == 2


async def test_decisions_are_told_once(place: Place, client: aiohttp.ClientSession) -> None:
    """Those from before at first, then the new ones; secrets in a path are hidden."""
    place.served("/geocode?key=hunter2", 503)
    place.log.flush()
    async with client.get("/admin/events") as response:
        [before] = await event(response, "decisions")
        assert (before["path"], before["status"]) == ("/geocode?key=***", 503)
        assert before["trail"]
        place.served("/matching", 200, rung="respond")
        place.log.flush()
        [after] = await event(response, "decisions")
        assert (after["path"], after["rung"]) == ("/matching", "respond")


async def test_nothing_runs_while_nobody_looks(place: Place, client: aiohttp.ClientSession) -> None:
    """The sampler ends with the last viewer, and comes back with the next."""
    for _ in range(2):
        assert place.dashboard._sampler is None
        async with client.get("/admin/events") as response:
            await event(response, "state")
            assert place.dashboard._sampler is not None
            assert place.dashboard.recent.watched
        for _ in range(500):
            if place.dashboard._sampler is None:
                break
            await asyncio.sleep(0.01)
        assert (place.dashboard.viewers, place.dashboard.recent.watched) == (0, False)


async def test_viewers_are_bounded(place: Place, client: aiohttp.ClientSession) -> None:
    """503 for one too many; the others go on."""
    place.dashboard.viewers = MOST_VIEWERS
    async with client.get("/admin/events") as response:
        assert response.status == 503
    place.dashboard.viewers = 0


async def test_a_figure_that_cannot_be_read_ends_nothing(
    place: Place, client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next frame comes when it can be read again."""
    async with client.get("/admin/events") as response:
        await event(response, "state")
        with monkeypatch.context() as broken:
            broken.setattr(place.admin.health, "report", None)
            await asyncio.sleep(1.2)
        assert (await event(response, "state"))["routes"] == []


async def test_what_is_kept_of_requests_is_bounded(place: Place) -> None:
    """The last of those that were no plain successes, and a plain one now and then."""
    for number in range(3 * MOST):
        place.served(f"/plain/{number}", 200)
        place.served(f"/odd/{number}", 500)
        place.log.flush()
    kept = orjson.loads(place.dashboard.recent.since(0))
    odd = [line["path"] for line in kept if line["status"] == 500]
    assert odd == [f"/odd/{number}" for number in range(2 * MOST, 3 * MOST)]
    assert 1 <= len(kept) - len(odd) <= 40


async def test_an_answer_that_may_be_wrong_is_kept(place: Place) -> None:
    """A 200 that the app made while a call of its own failed is no plain success."""
    place.served("/plain/1", 200)
    place.served("/plain/2", 200)  # one a second is enough of those
    place.served("/doubtful", 200, note_list=[("overlap", "degraded=google-maps")])
    place.log.flush()
    kept = orjson.loads(place.dashboard.recent.since(0))
    assert [line["path"] for line in kept] == ["/plain/1", "/doubtful"]


async def test_one_batch_costs_little_while_nobody_looks(place: Place) -> None:
    """The rest of a large batch is not looked at."""
    for number in range(200):
        place.served(f"/odd/{number}", 500)
    place.log.flush()
    assert len(orjson.loads(place.dashboard.recent.since(0))) == 64

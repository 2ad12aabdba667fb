"""What a subject's routes become on the admin listener, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
import structlog
from aiohttp import web

from sidecar.admin.page import Page, json_page
from sidecar.admin.route import NDJSON, Route, Takes, audit, in_json
from sidecar.admin.stream import events, streaming
from tests.admin.test_api import LOOPBACK, Admin

TOKEN = "open sesame"
GIVEN = {"Authorization": f"Bearer {TOKEN}"}


class Things:
    """A subject with all that a route may have."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    def routes(self) -> Iterator[Route]:
        said = {"200": in_json("Said.")}
        yield Route(method="GET", path="/things/{id}", handler=self._one, summary="One.", answers=said)
        yield Route(
            method="GET",
            path="/things/{id}/events",
            handler=self._events,
            summary="Its life.",
            answers={"200": in_json("Said.")},
            query={"since": {"type": "integer", "description": "The first."}},
        )
        yield Route(method="DELETE", path="/things/{id}", handler=self._drop, summary="Drops.", answers=said)
        yield Route(
            method="POST",
            path="/things",
            handler=self._double,
            summary="Doubles each line.",
            answers=said,
            takes=Takes({NDJSON: {"type": "string"}}),
        )

    async def _one(self, request: web.Request) -> Page:
        return json_page({"id": request.match_info["id"]})

    async def _drop(self, request: web.Request) -> Page:
        audit(request, "thing dropped", colour="red")
        if request.match_info["id"] == "bad":
            raise RuntimeError("the secret")
        return json_page({})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        async with events(request) as (response, stream):
            await stream.send({"n": 1}, event="begun", id="1")
            await stream.beat()
            await asyncio.Event().wait()
        self.left.set()
        return response

    async def _double(self, request: web.Request) -> web.StreamResponse:
        async with streaming(request, NDJSON) as response:
            async for line in request.content:
                await response.write(line.strip() * 2 + b"\n")
        return response


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    admin = Admin()
    await admin.start(LOOPBACK, token=TOKEN, subjects=[Things()])
    yield admin
    await admin.server.close()


@pytest.fixture
async def client(admin: Admin) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://{admin.server.address}") as session:
        yield session


async def test_a_path_may_have_variables(client: aiohttp.ClientSession) -> None:
    """They are the handler's, decoded."""
    async with client.get("/things/a%20b") as response:
        assert await response.json() == {"id": "a b"}


async def test_ndjson_streams_up_and_down(client: aiohttp.ClientSession) -> None:
    """The answer to the first line comes before the second line goes, and there may be many."""
    go_on = asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        yield b"one\n"
        await go_on.wait()
        for _ in range(100):
            yield b"x" * 8000 + b"\n"

    async with client.post("/things", data=lines(), headers=GIVEN) as response:
        assert response.content_type == NDJSON
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert await response.content.readline() == b"oneone\n"
        go_on.set()
        assert len(await response.read()) == 100 * 16001


async def test_events_are_sent_as_they_happen(admin: Admin, client: aiohttp.ClientSession) -> None:
    """In the form of WHATWG HTML, 9.2; a listener that closes ends them at once, as a whole body."""
    async with client.get("/things/7/events") as response:
        assert response.content_type == "text/event-stream"
        first = b"".join([await response.content.readline() for _ in range(4)])
        assert first == b'event: begun\nid: 1\ndata: {"n":1}\n\n'
        started = asyncio.get_running_loop().time()
        closing = asyncio.ensure_future(admin.server.close())
        assert await response.content.read() == b":\n\n"
        await closing
        assert asyncio.get_running_loop().time() - started < 0.9  # the grace of other answers is a second


async def test_all_that_acts_takes_the_token(client: aiohttp.ClientSession) -> None:
    """DELETE too, and each act leaves one line that tells who, what and how it ended."""
    with structlog.testing.capture_logs() as lines:
        async with client.delete("/things/7") as response:
            assert response.status == 401
        async with client.delete("/things/7", headers=GIVEN) as response:
            assert response.status == 200
        async with client.delete("/things/7", headers={**GIVEN, "Origin": "http://evil.example"}) as response:
            assert response.status == 403
    act = {"act": "DELETE /things/{id}", "id": "7", "client": "127.0.0.1", "log_level": "warning"}
    told = [{key: value for key, value in line.items() if key != "source"} for line in lines]
    assert told == [
        {"event": "admin act", "status": 401, "outcome": "refused", **act},
        {"event": "thing dropped", "colour": "red", "status": 200, "outcome": "done", **act},
        {"event": "admin act", "status": 403, "outcome": "refused", **act},
    ]
    assert TOKEN not in str(lines)


async def test_an_act_that_fails_is_told_too(client: aiohttp.ClientSession) -> None:
    """What it came to is in the audit line; the traceback is another."""
    with structlog.testing.capture_logs() as lines:
        async with client.delete("/things/bad", headers=GIVEN) as response:
            assert response.status == 500
            assert "secret" not in await response.text()
    outcomes = [line["outcome"] for line in lines if line["event"] == "thing dropped"]
    assert outcomes == ["failed"]


async def test_the_listener_names_its_routes(client: aiohttp.ClientSession) -> None:
    """In a 404, and in the OpenAPI document with variables, queries and the token."""
    async with client.get("/nothing") as response:
        assert "/things/{id}/events" in (await response.json(content_type=None))["detail"]
    async with client.get("/openapi.json") as response:
        paths: dict[str, Any] = (await response.json())["paths"]
    events_of = paths["/things/{id}/events"]["get"]
    path, query = events_of["parameters"]
    assert path == {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    assert (query["name"], query["description"]) == ("since", "The first.")
    drop = paths["/things/{id}"]["delete"]
    assert drop["security"] == [{}, {"token": []}]
    assert {"200", "401", "403"} <= drop["responses"].keys()
    assert NDJSON in paths["/things"]["post"]["requestBody"]["content"]

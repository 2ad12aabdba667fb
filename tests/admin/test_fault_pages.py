"""What the admin listener shows of injected faults and does about them, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jsonschema
import orjson
import pytest
import structlog

from sidecar.faults import Faults
from tests.admin.test_api import LOOPBACK, Admin
from tests.support.clock import ManualClock

TOKEN = "open sesame"
SLOW = {"route": "geocode", "fault": {"percent": "20%", "delay": "2s"}, "expires": "5m"}


class Place:
    """Two routes to one upstream, and the admin listener beside them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.faults = Faults(self.clock)
        self.slots = {name: self.faults.slot(name, "maps", None) for name in ("geocode", "directions")}

    @property
    def active(self) -> dict[str, int]:
        return {name: len(slot.active or ()) for name, slot in self.slots.items()}


@pytest.fixture
def place() -> Place:
    return Place()


async def listening(place: Place | None, **settings: Any) -> AsyncIterator[aiohttp.ClientSession]:
    admin = Admin()
    await admin.start(LOOPBACK, faults=None if place is None else place.faults, **settings)
    async with aiohttp.ClientSession(f"http://{admin.server.address}") as session:
        yield session
    await admin.server.close()


@pytest.fixture
async def client(place: Place) -> AsyncIterator[aiohttp.ClientSession]:
    async for session in listening(place):
        yield session


async def post(client: aiohttp.ClientSession, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with client.post("/admin/faults", data=data, headers=headers) as response:
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json(content_type=None)


async def listed(client: aiohttp.ClientSession) -> list[dict[str, Any]]:
    async with client.get("/admin/faults") as response:
        assert response.status == 200
        faults = (await response.json())["faults"]
    assert isinstance(faults, list)
    return faults


async def test_set_listed_and_cleared(client: aiohttp.ClientSession, place: Place) -> None:
    """A fault is in force from the answer on, and gone after the next one."""
    assert await listed(client) == []
    status, answer = await post(client, SLOW)
    assert status == 200
    assert answer["faults"] == await listed(client)
    [fault] = answer["faults"]
    assert (fault["route"], fault["source"], fault["expires_in_seconds"]) == ("geocode", "admin", 300.0)
    assert fault["fault"]["percent"] == "20%"
    assert place.active == {"geocode": 1, "directions": 0}
    status, answer = await post(client, {"route": "geocode", "fault": "off"})
    assert (status, answer) == (200, {"cleared": 1, "faults": []})
    assert place.active == {"geocode": 0, "directions": 0}


async def test_on_an_upstream(client: aiohttp.ClientSession, place: Place) -> None:
    """It hits all routes there; `null` without a place ends all there is."""
    fault = {"reset": True, "expires": "1m"}
    assert (await post(client, {"upstream": "maps", "fault": fault}))[0] == 200
    assert place.active == {"geocode": 1, "directions": 1}
    assert (await post(client, SLOW))[0] == 200
    status, answer = await post(client, {"fault": None})
    assert (status, answer["cleared"]) == (200, 2)
    assert place.active == {"geocode": 0, "directions": 0}


async def test_it_expires(client: aiohttp.ClientSession, place: Place) -> None:
    """What is over is listed no more."""
    await post(client, SLOW)
    await place.clock.advance(299)
    assert (await listed(client))[0]["expires_in_seconds"] == 1.0
    await place.clock.advance(1)
    assert await listed(client) == []
    assert place.active == {"geocode": 0, "directions": 0}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is not JSON"),
        (b"[]", "the body is not a JSON object"),
        ({"route": "geocode"}, "fault: it is missing"),
        ({"fault": {"reset": True, "expires": "1m"}}, "where? name a route or an upstream"),
        ({**SLOW, "upstream": "maps"}, "not both"),
        ({**SLOW, "route": "geocod"}, 'there is no route "geocod" (there are directions, geocode)'),
        ({**SLOW, "expires": "2h"}, "60 minutes at most"),
        ({"route": "geocode", "fault": {"reset": True}}, "when does it end?"),
        ({"route": "geocode", "fault": {"reset": True, "expires": "1m"}, "expires": "1m"}, "there twice"),
        ({"route": "geocode", "fault": {}, "expires": "1m"}, "fault does nothing (write one of"),
        (
            {"route": "geocode", "fault": {"reset": True, "truncate": "1B"}, "expires": "1m"},
            "fault.truncate: after a reset nothing comes",
        ),
        (
            {"route": "geocode", "fault": {"dealy": "2s", "percent": "200%"}, "expires": "1 minute"},
            'expires: "1 minute" is neither a duration nor a time',
        ),
        ({"route": "geocode", "fault": {"dealy": "2s"}}, "fault.dealy: unknown key (did you mean delay?)"),
        ({"route": "nowhere", "fault": None}, 'there is no route "nowhere"'),
        ({"colour": "red", "fault": None}, "colour: unknown key"),
        ({"route": 7, "fault": "off"}, 'there is no route "7"'),
        ({"route": ["geocode"], "fault": "off"}, "route: expected text, got a list"),
        (b'{"fault": "\\u0000"}', "fault: expected a mapping"),
    ],
)
async def test_what_cannot_be_understood(
    client: aiohttp.ClientSession, place: Place, body: object, why: str
) -> None:
    """400 with all that is wrong, in the words of `sidecar check`; nothing is done."""
    status, problem = await post(client, body)
    assert status == 400
    assert why in problem["detail"]
    assert place.active == {"geocode": 0, "directions": 0}


async def test_all_that_is_wrong_is_told_at_once(client: aiohttp.ClientSession) -> None:
    """As `sidecar check` does."""
    _, problem = await post(client, {"route": "geocode", "fault": {"dealy": "2s", "percent": "200%"}})
    assert {each.split(":")[0] for each in problem["detail"].split("; ")} == {"fault.dealy", "fault.percent"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}, 403),
        ({"Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
async def test_acting_takes_the_token(place: Place, headers: dict[str, str], expected: int) -> None:
    """And no page of another site; looking takes neither."""
    async for client in listening(place, token=TOKEN):
        status, _ = await post(client, SLOW, **headers)
        assert status == expected
        assert len(await listed(client)) == (expected == 200)


async def test_production_sets_no_faults(place: Place) -> None:
    """403; what is there may be looked at and ended."""
    async for client in listening(place, production=True):
        status, problem = await post(client, SLOW)
        assert (status, problem["detail"]) == (403, "no faults are injected in production")
        assert place.active == {"geocode": 0, "directions": 0}
        assert (await post(client, {"fault": "off"}))[0] == 200


async def test_each_act_is_logged(client: aiohttp.ClientSession) -> None:
    """Who did what, and where."""
    with structlog.testing.capture_logs() as lines:
        await post(client, SLOW)
        await post(client, {"route": "geocode", "fault": "off"})
    assert [(line["event"], line["client"], line["route"], line["log_level"]) for line in lines] == [
        ("fault set", "127.0.0.1", "geocode", "warning"),
        ("fault cleared", "127.0.0.1", "geocode", "warning"),
    ]
    assert lines[0]["fault"]["expires"] == "5m"
    assert lines[1]["cleared"] == 1


async def test_without_a_data_plane() -> None:
    """There is nothing to look at, and nowhere to inject into."""
    async for client in listening(None):
        assert await listed(client) == []
        assert (await post(client, SLOW))[0] == 409


async def test_the_openapi_document_describes_it(client: aiohttp.ClientSession) -> None:
    """What it takes and answers is as the document says."""
    async with client.get("/openapi.json") as response:
        described = (await response.json())["paths"]["/admin/faults"]
    takes = described["post"]["requestBody"]["content"]["application/json"]["schema"]
    gives = described["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    for order in (SLOW, {"route": "geocode", "fault": None}, {"fault": "off"}):
        jsonschema.Draft202012Validator(takes).validate(order)
        status, answer = await post(client, order)
        assert status == 200
        jsonschema.Draft202012Validator(gives).validate(answer)
    assert not jsonschema.Draft202012Validator(takes).is_valid({"route": "geocode"})

"""What the admin listener shows of circuit breakers and does about them, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jsonschema
import orjson
import pytest
import structlog

from sidecar.admin.breaker_pages import BreakerPages, Breakers
from sidecar.decisions.breaker import Breaker
from sidecar.decisions.verdict import Outcome
from sidecar.telemetry.metrics import Metrics
from tests.admin.test_api import LOOPBACK, Admin
from tests.support.clock import ManualClock

OPEN = {"breaker": "maps", "action": "force_open", "reason": "their maintenance", "expires": "10m"}


class Place:
    """A breaker, and the admin listener beside it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.breaker = Breaker()
        self.cells = self.metrics.watch_breaker("maps", self.breaker)
        self.admin = Admin()
        self.admin.breakers = Breakers(self.metrics, self.clock)

    def lets_through(self) -> bool:
        permit = self.breaker.acquire(self.clock.now())
        if permit is not None:
            self.breaker.end(permit, Outcome.IGNORE, self.clock.now(), 0.0)
        return permit is not None

    def fail(self, times: int) -> None:
        for _ in range(times):
            permit = self.breaker.acquire(self.clock.now())
            if permit is not None:
                self.breaker.end(permit, Outcome.FAILURE, self.clock.now(), 0.1)


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
async def client(place: Place) -> AsyncIterator[aiohttp.ClientSession]:
    await place.admin.start(LOOPBACK)
    async with aiohttp.ClientSession(f"http://{place.admin.server.address}") as session:
        yield session
    await place.admin.server.close()


async def post(client: aiohttp.ClientSession, body: object) -> tuple[int, dict[str, Any]]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with client.post("/admin/breakers", data=data) as response:
        return response.status, await response.json(content_type=None)


async def maps(client: aiohttp.ClientSession) -> dict[str, Any]:
    async with client.get("/admin/breakers") as response:
        assert response.status == 200
        [breaker] = (await response.json())["breakers"]
    assert isinstance(breaker, dict)
    return breaker


async def test_a_breaker_is_shown(client: aiohttp.ClientSession, place: Place) -> None:
    """Its state, since when and why, and when to come back."""
    shown = await maps(client)
    assert (shown["breaker"], shown["state"], shown["mode"]) == ("maps", "closed", "enforce")
    assert "since" not in shown
    place.fail(5)
    await place.clock.advance(2)
    shown = await maps(client)
    assert (shown["state"], shown["cause"], shown["retry_after_seconds"]) == ("open", "consecutive", 3.0)
    assert "forced" not in shown


async def test_forced_open_it_lets_nothing_through(client: aiohttp.ClientSession, place: Place) -> None:
    """Until the time is up: then it probes."""
    status, answer = await post(client, OPEN)
    assert status == 200
    [shown] = answer["breakers"]
    assert shown["state"] == "open"
    assert shown["forced"] == {
        "state": "open",
        "reason": "their maintenance",
        "client": "127.0.0.1",
        "expires_in_seconds": 600.0,
    }
    assert not place.lets_through()
    await place.clock.advance(599)
    assert not place.lets_through()
    await place.clock.advance(1)
    shown = await maps(client)
    assert (shown["state"], "forced" in shown) == ("half_open", False)
    assert place.lets_through()


async def test_forced_closed_it_counts_nothing(client: aiohttp.ClientSession, place: Place) -> None:
    """Until the time is up: then it judges again, from zero."""
    place.fail(5)
    await post(client, {**OPEN, "action": "force_close"})
    place.fail(50)
    assert place.lets_through()
    assert (await maps(client))["forced"]["state"] == "closed"
    await place.clock.advance(600)
    assert "forced" not in await maps(client)
    place.fail(4)
    assert place.lets_through()
    place.fail(5)
    assert not place.lets_through()


async def test_reset_starts_afresh(client: aiohttp.ClientSession, place: Place) -> None:
    """Whatever was measured or forced before."""
    await post(client, OPEN)
    status, answer = await post(client, {"breaker": "maps", "action": "reset", "reason": "they are back"})
    assert (status, answer["breakers"][0]["state"]) == (200, "closed")
    assert "forced" not in answer["breakers"][0]
    place.fail(4)
    assert place.lets_through()
    place.fail(5)
    assert not place.lets_through()


async def test_what_was_forced_is_counted(client: aiohttp.ClientSession, place: Place) -> None:
    """As any transition is."""
    await post(client, OPEN)
    await post(client, {"breaker": "maps", "action": "reset", "reason": "they are back"})
    assert place.cells.entered == {"closed": 1, "half_open": 0, "open": 1}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is not JSON"),
        (b"[]", "the body is not a JSON object"),
        ({**OPEN, "reason": None}, "reason"),
        ({**OPEN, "reason": " "}, "say why"),
        ({**OPEN, "reason": "a\nb"}, "say why"),
        ({**OPEN, "reason": "a" * 201}, "reason"),
        ({**OPEN, "expires": None}, "expires: when does it end?"),
        ({**OPEN, "expires": "2d"}, "24 hours at most"),
        ({**OPEN, "expires": "soon"}, 'expires: "soon" is not a duration'),
        ({**OPEN, "expires": "0s"}, "expires"),
        ({**OPEN, "action": "reset"}, "a reset is over at once"),
        ({**OPEN, "action": "close"}, "force_close"),
        ({**OPEN, "colour": "red"}, "colour: unknown key"),
    ],
)
async def test_what_cannot_be_understood(
    client: aiohttp.ClientSession, place: Place, body: object, why: str
) -> None:
    """400 with what is wrong; nothing is done."""
    status, problem = await post(client, body)
    assert status == 400
    assert why in problem["detail"]
    assert place.breaker.transitions == 0


async def test_there_is_no_such_breaker(client: aiohttp.ClientSession) -> None:
    """404 with those that there are."""
    status, problem = await post(client, {**OPEN, "breaker": "map"})
    assert status == 404
    assert problem["detail"] == 'breaker: there is none called "map" (there are maps)'


async def test_it_is_logged_who_did_it_and_why(client: aiohttp.ClientSession) -> None:
    """One line."""
    with structlog.testing.capture_logs() as lines:
        await post(client, OPEN)
    [line] = lines
    assert {key: line[key] for key in ("event", "breaker", "action", "reason", "expires", "client")} == {
        "event": "circuit breaker overruled",
        "client": "127.0.0.1",
        **OPEN,
    }


async def test_the_openapi_document_describes_it(client: aiohttp.ClientSession) -> None:
    """What it takes and answers is as the document says."""
    async with client.get("/openapi.json") as response:
        described = (await response.json())["paths"]["/admin/breakers"]["post"]
    takes = described["requestBody"]["content"]["application/json"]["schema"]
    gives = described["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator(takes).validate(OPEN)
    _, answer = await post(client, OPEN)
    jsonschema.Draft202012Validator(gives).validate(answer)
    assert not jsonschema.Draft202012Validator(takes).is_valid({"breaker": "maps"})


def test_without_breakers_there_is_nothing() -> None:
    """An empty list."""
    pages = BreakerPages(Breakers(Metrics(), ManualClock()))
    page = next(iter(pages.routes())).page
    assert page is not None
    assert orjson.loads(page("").body) == {"breakers": []}

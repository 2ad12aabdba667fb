"""Ten minutes without Google, with the shipped policies, in virtual time and unscaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.config.load import load_policy
from sidecar.errors import ConnectFailed, ConnectionReset
from tests.support.clock import ManualClock
from tests.support.script import Bench, Outcome, answer, fail, hang, shown

GOOGLE = Path(__file__).parents[2] / "policies" / "google-maps.yaml"
OUTAGE = 600
EVERY = 3
"""Seconds from one matching to the next. Each asks for a known address, a new one, and a way."""


def says(**members: Any) -> Outcome:
    return answer(200, orjson.dumps(members), (b"Content-Type", b"application/json"))


WELL = says(status="OK", results=[{"place_id": "true"}], routes=[{"summary": "true"}])
BREAKAGES = {
    "5xx": answer(503),
    "refused": fail(ConnectFailed()),
    "reset": fail(ConnectionReset()),
    "hangs": hang(),
    "unknown error": says(status="UNKNOWN_ERROR"),
    "too fast": says(status="OVER_QUERY_LIMIT", error_message="You have exceeded your rate-limit"),
    "daily quota": says(status="OVER_QUERY_LIMIT", error_message="You have exceeded your daily quota"),
    "key refused": says(status="REQUEST_DENIED", error_message="The provided API key is invalid."),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
async def test_the_apps_breaker_stays_closed(breakage: str) -> None:
    """Not one call is a failure to the app, so its breaker, which opens at five, cannot open; what was known
    stays as it was, what is new is marked, and Google is asked again soon after it is back.
    """
    [policy] = load_policy(GOOGLE, {}).policies
    by_name = {route.name: route for route in policy.routes}
    bench = Bench(WELL, clock=ManualClock(turns=8))
    geocode, directions = bench.of(by_name["geocode"]), bench.of(by_name["directions"])

    async def place(address: str) -> tuple[str, list[Any], str | None]:
        target = b"/maps/api/geocode/json?key=k&address=" + address.encode()
        response = await bench.clock.complete(geocode(target=target))
        assert isinstance(response.body, bytes)
        told = orjson.loads(response.body)
        return told["status"], told["results"], shown(response, "sidecar-degraded")

    async def way(departure: float) -> str:
        query = f"origin=1,2&destination=3,4&mode=driving&departure_time={departure:.0f}"
        target = b"/maps/api/directions/json?key=k&" + query.encode()
        response = await bench.clock.complete(directions(target=target))
        assert isinstance(response.body, bytes)
        return str(orjson.loads(response.body)["status"])

    known = ("OK", [{"place_id": "true"}], None)
    assert await place("known") == known
    assert await way(bench.clock.wall()) == "OK"

    bench.script, started = [BREAKAGES[breakage]], bench.clock.now()
    calls = 0
    while bench.clock.now() < started + OUTAGE:
        due = bench.clock.now() + EVERY
        assert await place("known") == known
        status, results, degraded = await place(f"new+{calls}")
        assert (status, degraded) == ("OK", "fallback;rung=respond")
        assert results[0]["partial_match"] is True
        assert await way(bench.clock.wall()) == "OK"
        calls += 1
        await bench.clock.advance(max(0.0, due - bench.clock.now()))
    assert calls > 30

    bench.script = [WELL]
    await bench.clock.advance(60)  # as long as the sidecar's breaker, or a hold, may last
    for number in range(3):  # the probes
        await place(f"probe+{number}")
    assert await place("new+0") == known

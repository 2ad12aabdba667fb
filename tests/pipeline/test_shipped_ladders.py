"""The ladders of the shipped policies: what the app and its clients read when a provider fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.config.load import load_policy
from sidecar.config.policy import Route
from sidecar.decisions.verdict import Verdict
from sidecar.errors import CircuitOpen, ConnectFailed
from sidecar.exchange import Response
from tests.support.script import Bench, Outcome, answer, fail, ok, shown

POLICIES = Path(__file__).parents[2] / "policies"
GEOCODE = b"/maps/api/geocode/json?address=13+rue+du+Champ+de+Mars&key=S3CRET"


def route(file: str, name: str) -> Route:
    [policy] = load_policy(POLICIES / f"{file}.yaml", {}).policies
    return next(route for route in policy.routes if route.name == name)


def says(**members: Any) -> Outcome:
    """An answer of a provider, 200 as theirs are."""
    return answer(200, orjson.dumps(members), (b"Content-Type", b"application/json"))


def told(response: Response) -> Any:
    assert isinstance(response.body, bytes)
    return orjson.loads(response.body)


@pytest.mark.parametrize(
    ("outcome", "calls"),
    [
        (fail(CircuitOpen()), 1),
        (says(status="OVER_QUERY_LIMIT", error_message="You have exceeded your daily request quota"), 1),
        (says(status="OVER_QUERY_LIMIT"), 3),
        (says(status="UNKNOWN_ERROR"), 3),
        (answer(503), 3),
        (says(status="REQUEST_DENIED", error_message="The provided API key is invalid."), 1),
    ],
)
async def test_a_geocode(outcome: Outcome, calls: int) -> None:
    """The app reads `OK` and about where Paris is, and nothing of it is stored; a quota costs one call."""
    bench = Bench(outcome)
    send = bench.of(route("google-maps", "geocode"))
    response = await bench.clock.complete(send(target=GEOCODE))
    answer = told(response)
    assert (response.status, answer["status"]) == (200, "OK")
    assert answer["results"][0]["geometry"]["location"] == {"lat": 48.8566, "lng": 2.3522}
    assert answer["results"][0]["partial_match"] is True
    assert shown(response, "sidecar-degraded") == "fallback;rung=respond"
    assert len(bench.calls) == calls
    bench.script, bench.calls[:] = [says(status="OK", results=[1])], []
    await bench.clock.advance(60)  # so long a used-up quota is held
    assert told(await send(target=GEOCODE))["results"] == [1]


async def test_what_is_no_failure_of_google_is_passed_on() -> None:
    """An address that does not exist, a request that is wrong: the app must know."""
    for status in ("ZERO_RESULTS", "INVALID_REQUEST"):
        send = Bench(says(status=status)).of(route("google-maps", "geocode"))
        assert told(await send(target=GEOCODE)) == {"status": status}


async def test_a_refused_key_is_not_hidden_from_the_operator() -> None:
    """The app gets a stand-in; figures and trail say `auth`, by which ExternalAPIKeyRefused fires."""
    bench = Bench(says(status="REQUEST_DENIED"))
    response = await bench.of(route("google-maps", "geocode"))(target=GEOCODE)
    assert told(response)["status"] == "OK"
    attempts = bench.metrics.upstream("app").attempts()
    assert {verdict: count for verdict, count in attempts.items() if count} == {Verdict.AUTH: 1}
    assert bench.sent[0].verdict is Verdict.AUTH  # the access log's
    assert ("classify", "auth") in (bench.sent[0].note_list or ())


async def test_a_known_address_stays_known() -> None:
    """For as long as Google's terms allow, the ladder is not climbed."""
    bench = Bench(says(status="OK", results=[1]), fail(ConnectFailed()))
    send = bench.of(route("google-maps", "geocode"))
    await send(target=GEOCODE)
    await bench.clock.advance(25 * 86_400)
    response = await bench.clock.complete(send(target=GEOCODE))
    assert (told(response)["results"], shown(response, "sidecar-degraded")) == ([1], "stale")


async def test_directions() -> None:
    """No way is known, and that is not counted as a failure by the app."""
    bench = Bench(fail(ConnectFailed()))
    response = await bench.clock.complete(bench.of(route("google-maps", "directions"))())
    assert told(response) == {"status": "OK", "routes": []}


async def test_openai_without_credit() -> None:
    """One call, no wait, and the words that an SDK knows; it is told not to ask again."""
    error = {"type": "insufficient_quota", "code": "insufficient_quota", "message": "You exceeded …"}
    bench = Bench(ok(orjson.dumps({"error": error}), 429, content_type="application/json"))
    response = await bench.of(route("openai", "chat"))("POST", b"{}")
    assert (response.status, told(response)["error"]["code"]) == (429, "insufficient_quota")
    assert shown(response, "x-should-retry") == "false"
    assert len(bench.calls) == 1
    assert bench.clock.slept == []


async def test_openai_overloaded() -> None:
    """After its retries, a 503 in OpenAI's shape; what asks for patience is passed on as it came."""
    bench = Bench(answer(500))
    response = await bench.clock.complete(bench.of(route("openai", "chat"))("POST", b"{}"))
    assert (response.status, told(response)["error"]["type"]) == (503, "server_error")
    assert len(bench.calls) == 2
    bench.script = [ok(b"{}", 429, retry_after="60")]
    response = await bench.clock.complete(bench.of(route("openai", "chat"))("POST", b"{}"))
    assert (response.status, shown(response, "retry-after")) == (429, "60")


async def test_matching() -> None:
    """Clients learn in the app's own words that there is no score now, for whom, and when to come again."""
    send = Bench(fail(CircuitOpen())).of(route("nextvision", "matching"))
    response = await send("POST", b"{}", target=b"/api/v1/matching/candidate/42")
    assert (response.status, shown(response, "retry-after")) == (503, "10")
    assert told(response)["candidate_id"] == "42"

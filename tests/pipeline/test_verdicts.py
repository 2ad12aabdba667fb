"""What the layers make of verdicts: the shipped policies, whole routes, answers as providers send them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from sidecar.config.load import load_policy
from sidecar.config.policy import Route
from sidecar.decisions.verdict import Verdict
from sidecar.exchange import Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, Send, ok, shown, stream

ROOT = Path(__file__).parents[2]
PAYLOADS = ROOT / "examples/payloads"
JSON: Any = {"content_type": "application/json; charset=UTF-8"}
EVENTS: Any = {"content_type": "text/event-stream; charset=utf-8"}
STREAMED = b'data: {"object": "chat.completion.chunk", "choices": []}\n\n'


def shipped(policy: str, name: str) -> Route:
    """A route of the shipped policies."""
    (file,) = load_policy(ROOT / f"policies/{policy}.yaml", {}).policies
    return next(route for route in file.routes if route.name == name)


def send_to(bench: Bench, policy: str, name: str) -> Send:
    """A sender through a shipped route, without its ladder: what the verdict does by itself."""
    return bench.of(shipped(policy, name).model_copy(update={"fallback": None}))


def payload(name: str, status: int = 200, **headers: str) -> Outcome:
    """An answer with the body of a sample."""
    return ok((PAYLOADS / f"{name}.json").read_bytes(), status, **JSON, **headers)


def google(status: str, message: str = "") -> Outcome:
    body = {"results": [], "status": status, **({"error_message": message} if message else {})}
    return ok(orjson.dumps(body), **JSON)


def openai_error(code: str | None, kind: str) -> bytes:
    return orjson.dumps({"error": {"message": "…", "type": kind, "param": None, "code": code}})


def breaker(bench: Bench) -> str:
    return bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value


def attempts(bench: Bench) -> dict[str, int]:
    counts = bench.metrics.upstream("app").attempts()
    return {verdict.value: count for verdict, count in counts.items() if count}


TOO_FAST = google("OVER_QUERY_LIMIT", "You have exceeded your rate-limit for this API.")


async def test_google_too_fast_twice_then_well() -> None:
    """The app sees OK, after three attempts; the breaker is closed."""
    bench = Bench(TOO_FAST, TOO_FAST, payload("google_directions_driving_reply"))
    response = await bench.clock.complete(send_to(bench, "google-maps", "directions")())
    assert (response.status, response.verdict) == (200, Verdict.OK)
    assert response.body == (PAYLOADS / "google_directions_driving_reply.json").read_bytes()
    assert len(bench.calls) == 3
    assert breaker(bench) == "closed"
    assert attempts(bench) == {"ok": 1, "rate_limited": 2}
    assert len(bench.clock.slept) == 2


async def test_an_address_that_is_nowhere_is_asked_for_once() -> None:
    """ZERO_RESULTS is an answer: the second request is a hit, and the breaker has seen a success."""
    bench = Bench(payload("google_zero_results_reply"))
    send = send_to(bench, "google-maps", "geocode")
    first = await send(target=b"/maps/api/geocode/json?address=Nowhere&key=k1")
    assert first.verdict is Verdict.NEGATIVE
    again = await send(target=b"/maps/api/geocode/json?address=%20nowhere&key=k2")
    assert again.body == first.body
    assert bench.outcomes == ["miss", "hit"]
    assert (len(bench.calls), attempts(bench)) == (1, {"negative": 1})
    assert breaker(bench) == "closed"
    await bench.clock.advance(24 * 3600 + 1)
    await send(target=b"/maps/api/geocode/json?address=Nowhere&key=k1")
    await settle()
    assert (bench.outcomes[2], len(bench.calls)) == ("updating", 2)


@pytest.mark.parametrize(
    ("answer", "verdict", "calls"),
    [
        (payload("google_geocode_reply"), Verdict.OK, 1),
        (payload("google_quota_reply"), Verdict.QUOTA, 1),
        (google("OVER_DAILY_LIMIT"), Verdict.QUOTA, 1),
        (TOO_FAST, Verdict.RATE_LIMITED, 3),
        (google("UNKNOWN_ERROR"), Verdict.TRANSIENT, 3),
        (payload("google_denied_reply"), Verdict.AUTH, 1),
        (google("INVALID_REQUEST"), Verdict.CLIENT, 1),
        (google("NOT_FOUND"), Verdict.NEGATIVE, 1),
        (ok(b"<html><title>Error 500</title></html>", 500, content_type="text/html"), Verdict.TRANSIENT, 3),
        (ok(b"", 403), Verdict.AUTH, 1),
    ],
)
async def test_what_google_says(answer: Outcome, verdict: Verdict, calls: int) -> None:
    """In the body of a 200, or by status; what no repetition mends is asked once, and nothing of it kept."""
    bench = Bench(answer)
    send = send_to(bench, "google-maps", "geocode")
    response = await bench.clock.complete(send())
    assert (response.verdict, len(bench.calls)) == (verdict, calls)
    await bench.clock.complete(send())
    kept = verdict in {Verdict.OK, Verdict.NEGATIVE}
    assert bench.outcomes == ["miss", "hit" if kept else "miss"]


QUOTA, LIMITED, TRANSIENT = Verdict.QUOTA, Verdict.RATE_LIMITED, Verdict.TRANSIENT


@pytest.mark.parametrize(
    ("status", "code", "kind", "verdict", "calls"),
    [
        (429, "insufficient_quota", "insufficient_quota", QUOTA, 1),
        (429, "credit_balance_exhausted", "insufficient_quota", QUOTA, 1),
        (429, "project_spend_limit_exceeded", "billing", QUOTA, 1),
        (429, "organization_usage_limit_exceeded", "billing", QUOTA, 1),
        (400, "billing_hard_limit_reached", "invalid_request_error", QUOTA, 1),
        (429, "rate_limit_exceeded", "tokens", LIMITED, 2),
        (429, "slow_down", "rate_limit_error", LIMITED, 2),
        (503, "server_is_overloaded", "service_unavailable_error", TRANSIENT, 2),
        (500, None, "server_error", TRANSIENT, 2),
        (401, "invalid_api_key", "invalid_request_error", Verdict.AUTH, 1),
        (400, "context_length_exceeded", "invalid_request_error", Verdict.CLIENT, 1),
    ],
)
async def test_what_openai_says(
    status: int, code: str | None, kind: str, verdict: Verdict, calls: int
) -> None:
    """By the code of its error: a spent quota is asked for once."""
    bench = Bench(ok(openai_error(code, kind), status, **JSON))
    response = await bench.clock.complete(send_to(bench, "openai", "chat")("POST", b"{}"))
    assert (response.status, response.verdict, len(bench.calls)) == (status, verdict, calls)
    assert breaker(bench) == "closed"


@pytest.mark.parametrize(
    ("code", "kind", "verdict", "calls"),
    [
        ("insufficient_quota", "insufficient_quota", QUOTA, 1),
        ("rate_limit_exceeded", "tokens", LIMITED, 2),
        (None, "server_error", TRANSIENT, 2),
        ("whatever_is_next", "unheard_of", TRANSIENT, 2),
        ("context_length_exceeded", "invalid_request_error", Verdict.CLIENT, 1),
    ],
)
async def test_a_stream_that_begins_with_an_error(
    code: str | None, kind: str, verdict: Verdict, calls: int
) -> None:
    """It is the error inside, though its status is 200: before a byte went out it may be asked again."""
    event = b"event: error\ndata: " + openai_error(code, kind) + b"\n\n"
    bodies = [Stream(None), Stream(None)]
    for body in bodies:
        body.feed(event[:20])
    bench = Bench(*(stream(body, **EVENTS) for body in bodies))
    sent = send_to(bench, "openai", "chat")("POST", b"{}")
    for body in bodies:
        await settle()
        body.feed(event[20:])
        await bench.clock.advance(1)
    response = await sent
    assert (response.verdict, len(bench.calls)) == (verdict, calls)


async def test_a_stream_that_begins_well_is_let_go_at_once() -> None:
    """With the first event, and with what holds it: the rest streams as ever."""
    body = Stream(None)
    bench = Bench(stream(body, **EVENTS))
    sent = send_to(bench, "openai", "chat")("POST", b"{}")
    body.feed(STREAMED)
    await settle()
    response = await sent
    assert (response.verdict, response.body) == (Verdict.OK, body)
    assert bench.metrics.limits["app"].in_flight == 1
    body.finish()
    assert bench.metrics.limits["app"].in_flight == 0


async def test_a_sample_of_openai() -> None:
    """Its answer is ok, its 429 is to be asked again after what it asks for."""
    bench = Bench(payload("openai_error_429_reply", 429, retry_after="6"), payload("openai_chat_cv_reply"))
    response = await bench.clock.complete(send_to(bench, "openai", "chat")("POST", b"{}"))
    assert (response.verdict, len(bench.calls), bench.clock.slept) == (Verdict.OK, 2, [6.0])


# -- the app ---------------------------------------------------------------------------------------


async def test_the_app_without_google_is_marked_and_not_kept() -> None:
    """Google is down: the answer goes out marked, the app's breaker stays closed, no POST is sent again."""
    bench = Bench(payload("matching_response_google_down"))
    send = send_to(bench, "nextvision", "matching")
    for _ in range(6):
        response = await send("POST", b"{}")
        assert (response.status, shown(response, "sidecar-degraded")) == (200, "upstream=google-maps")
    assert (len(bench.calls), breaker(bench), attempts(bench)) == (6, "closed", {"ok": 6})
    bench.script = [payload("matching_response_ok")]
    assert shown(await send("POST", b"{}"), "sidecar-degraded") is None


@pytest.mark.parametrize(
    ("body", "degraded"),
    [
        ({"transport_intelligence": {"distance_km": 0.0}}, "google-maps"),
        ({"matching_results": {"transport_intelligence": {"distance_km": 0.0}}}, "google-maps"),
        (
            {"matching_results": {"transport_intelligence": {"location_score_source": "fallback"}}},
            "google-maps",
        ),
        ({"matching_results": {"error": "Matching calculation failed"}}, "google-maps"),
        ({"candidate_summary": {"name": "Candidat Test"}}, "openai"),
        (
            {"candidate_summary": {"name": "Marie Dupont"}, "transport_intelligence": {"distance_km": 2.2}},
            None,
        ),
    ],
)
async def test_the_lies_of_intelligent_matching(body: dict[str, Any], degraded: str | None) -> None:
    """A candidate that was made up, a distance that nobody measured."""
    bench = Bench(ok(orjson.dumps(body), **JSON))
    response = await send_to(bench, "nextvision", "intelligent-matching")("POST", b"{}")
    assert shown(response, "sidecar-degraded") == (None if degraded is None else f"upstream={degraded}")


# -- answers that are not to be kept, and the cache ------------------------------------------------

LIE, TRUTH = b'{"distance_km": 0.0}', b'{"distance_km": 2.2}'
CACHED: dict[str, Any] = {
    "classify": [{"json": {"distance_km": 0}, "verdict": "ok", "degraded": "google-maps"}],
    "cache": {"ttl": "1m", "stale_if_error": "1h"},
}


async def test_a_degraded_answer_is_not_stored() -> None:
    """Not under the policy's ttl, nor by the origin's own word; the next one may be."""
    bench = Bench(ok(LIE, **JSON), ok(LIE, **JSON, cache_control="max-age=60"), ok(TRUTH, **JSON))
    send = bench.route(**CACHED)
    bodies = [(await send()).body for _ in range(4)]
    assert bodies == [LIE, LIE, TRUTH, TRUTH]
    assert bench.outcomes == ["miss", "miss", "miss", "hit"]


async def test_a_stale_answer_stands_in_for_a_degraded_one() -> None:
    """What was true an hour ago is better than what was made without."""
    bench = Bench(ok(TRUTH, **JSON), ok(LIE, **JSON))
    send = bench.route(**CACHED)
    await send()
    await bench.clock.advance(600)
    response = await send()
    assert (response.body, shown(response, "sidecar-degraded")) == (TRUTH, "stale")
    await bench.clock.advance(3600)
    response = await send()
    assert (response.body, shown(response, "sidecar-degraded")) == (LIE, "upstream=google-maps")


async def test_those_who_wait_share_a_degraded_answer() -> None:
    """Each run by itself would come to the same: one call for all who asked meanwhile."""
    gate = asyncio.Event()

    async def slow(exchange: Any) -> Response:
        await gate.wait()
        response: Response = await ok(LIE, **JSON)(exchange)
        return response

    bench = Bench(slow)
    send = bench.route(**CACHED)
    sent = [send() for _ in range(10)]
    await settle()
    gate.set()
    responses = await asyncio.gather(*sent)
    assert len(bench.calls) == 1
    assert {shown(response, "sidecar-degraded") for response in responses} == {"upstream=google-maps"}


async def test_a_lie_with_a_vary_is_its_clients_own() -> None:
    """What it varies by may differ between those who wait."""
    gate = asyncio.Event()

    async def slow(exchange: Any) -> Response:
        await gate.wait()
        response: Response = await ok(LIE, **JSON, vary="accept")(exchange)
        return response

    bench = Bench(slow)
    send = bench.route(**CACHED)
    sent = [send(accept=kind) for kind in ("a", "b")]
    await settle()
    gate.set()
    await asyncio.gather(*sent)
    assert len(bench.calls) == 2


async def test_the_trail_tells_the_verdicts() -> None:
    """Of each attempt, and for what it was repeated."""
    bench = Bench(TOO_FAST, payload("google_directions_driving_reply"))
    await bench.clock.complete(send_to(bench, "google-maps", "directions")())
    assert bench.sent[0].note_list == [
        ("upstream", "status=200"),
        ("classify", "rate_limited"),
        ("retry", "rate_limited"),
    ]

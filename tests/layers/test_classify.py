"""Verdicts of a route: from the status, from rules, from the body while it streams."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest

from sidecar.decisions.opening import MOST
from sidecar.decisions.verdict import Verdict
from sidecar.errors import BodyBroken
from sidecar.exchange import HIGH_WATER, End, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Send, answer, content, ok, shown, stream

QUOTA = {"json": {"error.code": "insufficient_quota"}, "verdict": "quota"}
NONE = {"status": 404, "json": {"code": "none"}, "verdict": "negative"}
JSON: Any = {"content_type": "application/json"}
EVENTS: Any = {"content_type": "text/event-stream"}
SPENT = b'{"error": {"code": "insufficient_quota"}}'


class Source:
    """A producer that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def abandon(self) -> None:
        self.asked.append("abandon")


def attempts(bench: Bench) -> dict[str, int]:
    """The counted attempts, by verdict."""
    counts = bench.metrics.upstream("app").attempts()
    return {verdict.value: count for verdict, count in counts.items() if count}


def trail(bench: Bench) -> list[str]:
    """What the last request's trail says of its verdict."""
    return [decision for layer, decision in bench.sent[-1].note_list or () if layer == "classify"]


async def streamed(send: Send, body: Stream, *chunks: bytes) -> tuple[asyncio.Task[Response], Stream]:
    """A request whose answer's body has come so far."""
    sent = send()
    await settle()
    for chunk in chunks:
        body.feed(chunk)
        await settle()
    return sent, body


async def test_without_rules_the_status_decides() -> None:
    """The body is no matter: nothing waits for it."""
    bench = Bench(stream(Stream(None), 429, **JSON))
    response = await bench.route()()
    assert response.verdict is Verdict.RATE_LIMITED
    assert attempts(bench) == {"rate_limited": 1}


@pytest.mark.parametrize("classify", ["off", [QUOTA]])
async def test_rules_are_for_their_route(classify: Any) -> None:
    """`off` is none."""
    bench = Bench(ok(SPENT, 429, **JSON))
    response = await bench.route(classify=classify)()
    assert response.verdict is (Verdict.RATE_LIMITED if classify == "off" else Verdict.QUOTA)
    assert bench.sent[0].verdict is response.verdict


async def test_a_whole_body_is_handed_up_as_it_is() -> None:
    """Not copied, and decoded for the look alone."""
    for body, headers in ((SPENT, JSON), (gzip.compress(SPENT), {**JSON, "content_encoding": "gzip"})):
        bench = Bench(ok(body, 429, **headers))
        response = await bench.route(classify=[QUOTA])()
        assert response.verdict is Verdict.QUOTA
        assert response.body is body
        assert shown(response, "content-encoding") == headers.get("content_encoding")
        assert (attempts(bench), trail(bench)) == ({"quota": 1}, ["quota"])
        assert bench.sent[0].note_list == [("upstream", "status=429"), ("classify", "quota")]


@pytest.mark.parametrize("size", [10, 60_000])
async def test_the_size_of_a_body_makes_no_difference(size: int) -> None:
    """A large one is parsed only where that may matter, and comes to the same."""
    filling = b'{"filling": "%b", ' % (b"x" * size)
    for body, verdict in (
        (filling + SPENT[1:], Verdict.QUOTA),
        (filling + b'"error": {"code": null}}', Verdict.RATE_LIMITED),
        (filling + b'"code": "insufficient_quota"}', Verdict.RATE_LIMITED),
    ):
        bench = Bench(ok(body, 429, **JSON))
        response = await bench.route(classify=[QUOTA])()
        assert response.verdict is verdict


async def test_a_streamed_body_is_waited_for() -> None:
    """And is whole by then: one write to the client."""
    bench = Bench(stream(body := Stream(None, len(SPENT)), 429, **JSON))
    sent, _ = await streamed(bench.route(classify=[QUOTA]), body, SPENT[:9], SPENT[9:])
    assert not sent.done()
    body.finish()
    response = await sent
    assert (response.verdict, response.body) == (Verdict.QUOTA, SPENT)


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b"{", b'{"error": {}}'])
async def test_what_matches_no_rule_has_the_verdict_of_its_status(body: bytes) -> None:
    """Whether it is JSON or not."""
    bench = Bench(ok(body, 503, **JSON))
    response = await bench.route(classify=[QUOTA])()
    assert (response.verdict, response.body) == (Verdict.TRANSIENT, body)
    assert trail(bench) == ["transient;not-json" if body in {b"<html>", b"{"} else "transient"]


async def test_a_body_that_no_rule_asks_for_is_not_waited_for() -> None:
    """The rules for that status need no body, or have it decided already."""
    for rules, verdict in (
        ([NONE], Verdict.OK),
        ([{"status": 200, "verdict": "transient"}, QUOTA], Verdict.TRANSIENT),
        ([{**QUOTA, "header": {"x-json": "1"}}], Verdict.OK),
    ):
        bench = Bench(stream(Stream(None), **JSON))
        assert (await bench.route(classify=rules)()).verdict is verdict


@pytest.mark.parametrize("kind", ["text/html", "image/png", "application/grpc"])
async def test_a_body_that_is_no_json_is_not_waited_for(kind: str) -> None:
    """Its type says so."""
    bench = Bench(stream(Stream(None), content_type=kind))
    assert (await bench.route(classify=[QUOTA])()).verdict is Verdict.OK
    assert trail(bench) == []


async def test_a_head_has_no_body_to_look_at() -> None:
    """The verdict is its status's."""
    bench = Bench(ok(b"", **JSON, content_length="41"))
    response = await bench.route(classify=[QUOTA])("HEAD")
    assert (response.verdict, trail(bench)) == (Verdict.OK, [])


async def test_exactly_the_limit_is_looked_at() -> None:
    """However its length is told."""
    body = SPENT + b" " * (MOST - len(SPENT))
    for length in (None, MOST):
        bench = Bench(stream(source := Stream(None, length), 429, **JSON))
        sent, _ = await streamed(bench.route(classify=[QUOTA]), source, body[:-1], body[-1:])
        assert not sent.done()
        source.finish()
        response = await sent
        assert (response.verdict, response.body) == (Verdict.QUOTA, body)


async def test_more_than_the_limit_streams_on() -> None:
    """Decided without the body, at the first byte too many, and nothing of it is lost."""
    body = SPENT + b" " * (MOST - len(SPENT))
    bench = Bench(stream(source := Stream(None), 429, **JSON))
    sent, _ = await streamed(bench.route(classify=[QUOTA]), source, body)
    assert not sent.done()
    source.feed(b" ")
    await settle()
    response = await sent
    assert (response.verdict, trail(bench)) == (Verdict.RATE_LIMITED, ["rate_limited;too-large"])
    assert response.body is source
    source.feed(b"rest")
    source.finish()
    assert await content(response) == body + b" rest"
    assert source.taken == MOST + 5


async def test_a_length_over_the_limit_is_not_waited_for() -> None:
    """The head says enough; rules that need no body still hold."""
    bench = Bench(stream(source := Stream(None, MOST + 1), 429, **JSON))
    rules = [QUOTA, {"status": 429, "verdict": "auth"}]
    response = await bench.route(classify=rules)()
    assert response.body is source
    assert (response.verdict, trail(bench)) == (Verdict.AUTH, ["auth;too-large"])


async def test_a_large_body_that_is_here_is_not_parsed() -> None:
    """The limit is the same for a body that came at once."""
    body = SPENT + b" " * MOST
    bench = Bench(ok(body, 429, **JSON))
    response = await bench.route(classify=[QUOTA])()
    assert response.body is body
    assert (response.verdict, trail(bench)) == (Verdict.RATE_LIMITED, ["rate_limited;too-large"])


async def test_the_look_does_not_disturb_back_pressure() -> None:
    """The producer is paused as ever, and goes on when the client has read."""
    producer = Source()
    bench = Bench(stream(body := Stream(producer), **JSON))
    sent, _ = await streamed(bench.route(classify=[QUOTA]), body, b"x" * (HIGH_WATER + 1))
    response = await sent
    assert producer.asked == ["pause"]
    assert response.body is body
    await body.read()
    assert producer.asked == ["pause", "resume"]


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
async def test_an_unknown_coding_is_decided_by_status(coding: str) -> None:
    """Nobody waits for what cannot be read."""
    bench = Bench(stream(Stream(None), 429, **JSON, content_encoding=coding))
    response = await bench.route(classify=[QUOTA])()
    assert (response.verdict, trail(bench)) == (Verdict.RATE_LIMITED, ["rate_limited;unknown-encoding"])


async def test_gzip_is_undone_for_the_look() -> None:
    """The client gets it as it was sent; cut short it is not understood, and passed on all the same."""
    packed = gzip.compress(SPENT)
    headers = {**JSON, "content_encoding": "gzip"}
    for sent_bytes, verdict, said in (
        (packed, Verdict.QUOTA, ["quota"]),
        (packed[:-4], Verdict.RATE_LIMITED, ["rate_limited;undecodable"]),
    ):
        bench = Bench(stream(body := Stream(None), 429, **headers))
        sent, _ = await streamed(bench.route(classify=[QUOTA]), body, sent_bytes[:7], sent_bytes[7:])
        body.finish()
        response = await sent
        assert (response.verdict, trail(bench)) == (verdict, said)
        assert response.body == sent_bytes


async def test_the_first_event_decides() -> None:
    """In whatever pieces it comes; the stream goes on from its first byte."""
    event = b"event: error\ndata: " + SPENT + b"\n\n"
    bench = Bench(stream(body := Stream(None), **EVENTS))
    sent, _ = await streamed(bench.route(classify=[QUOTA]), body, event[:1], event[1:30], event[30:-1])
    assert not sent.done()
    body.feed(event[-1:])
    response = await sent
    assert (response.verdict, trail(bench)) == (Verdict.QUOTA, ["quota"])
    assert response.body is body
    body.feed(b"data: [DONE]\n\n")
    body.finish()
    assert await content(response) == event + b"data: [DONE]\n\n"


@pytest.mark.parametrize("first", [b'data: {"choices": []}\n\n', b": alive\n\n", b"data: [DONE]\n\n"])
async def test_no_more_than_the_first_event_is_waited_for(first: bytes) -> None:
    """A comment counts: it is there to be seen by the client."""
    bench = Bench(stream(body := Stream(None), **EVENTS))
    sent, _ = await streamed(bench.route(classify=[QUOTA]), body, first)
    assert sent.done()
    assert (await sent).verdict is Verdict.OK


async def test_a_body_that_breaks_is_a_failed_attempt() -> None:
    """Nothing went to the client: it may be repeated, and the breaker counts it."""
    broken = Stream(None, 100)
    bench = Bench(stream(broken, **JSON), answer(body=b"{}"))
    send = bench.route(classify=[QUOTA], retry={"attempts": 2}, circuit_breaker={})
    sent, _ = await streamed(send, broken, b"{")
    broken.fail(BodyBroken())
    response = await bench.clock.complete(sent)
    assert response.body == b"{}"
    assert attempts(bench) == {"transient": 1, "ok": 1}
    assert bench.sent[0].note_list == [
        ("upstream", "error=upstream_body_broken"),
        ("classify", "transient"),
        ("retry", "reset"),
    ]


async def test_a_body_that_breaks_is_not_repeated_where_that_is_not_safe() -> None:
    """A POST ends in 502."""
    broken = Stream(None, 100)
    bench = Bench(stream(broken, **JSON))
    send = bench.route(classify=[QUOTA], retry={"attempts": 2}, circuit_breaker={"consecutive": 1})
    sent = send("POST")
    await settle()
    broken.fail(BodyBroken("the connection ended within the body"))
    response = await sent
    assert (response.status, shown(response, "sidecar-error")) == (502, "upstream_body_broken")
    assert len(bench.calls) == 1
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "open"


async def test_a_body_that_breaks_later_is_the_clients_to_see() -> None:
    """Past the look it breaks off as ever."""
    bench = Bench(stream(body := Stream(None), **JSON))
    sent, _ = await streamed(bench.route(classify=[QUOTA]), body, b"x" * (MOST + 1))
    body.fail(BodyBroken())
    with pytest.raises(BodyBroken):
        await content(await sent)


async def test_the_wait_is_part_of_the_attempt() -> None:
    """A body that stands still within what is looked at ends with the attempt's time."""
    producer = Source()
    bench = Bench(stream(Stream(producer), **JSON))
    send = bench.route(classify=[QUOTA], attempt_timeout="2s", concurrency_limit={"max": 1})
    sent = send()
    await bench.clock.advance(1.9)
    assert not sent.done()
    await bench.clock.advance(0.2)
    response = await sent
    assert (response.status, shown(response, "sidecar-error")) == (504, "attempt_timeout")
    assert producer.asked == ["abandon"]
    assert attempts(bench) == {"transient": 1}
    assert bench.metrics.limits["app"].in_flight == 0


async def test_a_client_that_leaves_ends_the_look() -> None:
    """The upstream is told, and permits are given back."""
    producer = Source()
    bench = Bench(stream(body := Stream(producer), **JSON))
    send = bench.route(classify=[QUOTA], concurrency_limit={"max": 1}, circuit_breaker={})
    sent, _ = await streamed(send, body, b"{")
    assert bench.metrics.limits["app"].in_flight == 1
    sent.cancel()
    await asyncio.gather(sent, return_exceptions=True)
    assert producer.asked == ["abandon"]
    assert body.end is End.DROPPED
    assert bench.metrics.limits["app"].in_flight == 0
    assert attempts(bench) == {}


@pytest.mark.parametrize("size", [10, MOST + 1])
async def test_permits_last_as_long_as_the_body(size: int) -> None:
    """A small body has come by the end of the look, a large one is still under way."""
    bench = Bench(stream(body := Stream(None), **JSON))
    send = bench.route(classify=[QUOTA], concurrency_limit={"max": 1}, circuit_breaker={})
    sent, _ = await streamed(send, body, b"x" * size)
    if size <= MOST:
        body.finish()
        await sent
    else:
        await sent
        assert bench.metrics.limits["app"].in_flight == 1
        body.finish()
    assert bench.metrics.limits["app"].in_flight == 0


async def test_the_time_to_the_head_is_measured_without_the_look() -> None:
    """What an upstream's speed is judged by does not grow with its bodies."""
    bench = Bench(stream(body := Stream(None), **JSON))
    sent, _ = await streamed(bench.route(classify=[QUOTA]), body)
    await bench.clock.advance(5)
    body.feed(b"{}")
    body.finish()
    await sent
    assert bench.sent[0].upstream_seconds == 0


async def test_a_listed_status_is_transient_where_no_rule_matches() -> None:
    """`retry.on.statuses` fills in for the status, not for the rules."""
    bench = Bench(ok(b'{"code": "none"}', 404, **JSON), ok(b"{}", 404, **JSON))
    send = bench.route(classify=[NONE], retry={"attempts": 2, "on": {"statuses": [404]}})
    assert (await send()).verdict is Verdict.NEGATIVE
    assert len(bench.calls) == 1
    assert (await bench.clock.complete(send())).verdict is Verdict.TRANSIENT
    assert len(bench.calls) == 3


async def test_a_degraded_answer_says_so() -> None:
    """It is a good one to retry and breaker; the header names what it was made without."""
    rule = {"json": {"distance_km": 0}, "verdict": "ok", "degraded": "google-maps"}
    bench = Bench(ok(b'{"distance_km": 0.0}', **JSON), ok(b'{"distance_km": 2.2}', **JSON))
    send = bench.route(classify=[rule], retry={"attempts": 2}, circuit_breaker={"consecutive": 1})
    response = await send("POST")
    assert (response.verdict, response.degraded) == (Verdict.OK, True)
    assert shown(response, "sidecar-degraded") == "upstream=google-maps"
    assert trail(bench) == ["ok;degraded=google-maps"]
    whole = await send("POST")
    assert (whole.degraded, shown(whole, "sidecar-degraded")) == (False, None)
    assert attempts(bench) == {"ok": 2}

"""The fallback layer with other upstreams: who may be asked, with what, for how long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.decisions.verdict import Verdict
from sidecar.errors import (
    AttemptTimeout,
    BodyTooLarge,
    CircuitOpen,
    ConnectFailed,
    ConnectionReset,
    EgressDenied,
    LimitExceeded,
)
from sidecar.exchange import End, Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, answer, content, fail, hang, ok, shown, stream

BACKUP = "http://backup.example.com:81"
SECOND = "http://second.example.com"
LATER: dict[str, Any] = {"respond": {"status": 200, "json": {"status": "later"}}}
ASK: dict[str, Any] = {"upstream": BACKUP}


async def _all(exchange: Exchange) -> bytes:
    body = exchange.request.body
    if isinstance(body, bytes):
        return body
    parts = []
    while part := await body.read():
        parts.append(part)
    return b"".join(parts)


def counted(bench: Bench) -> dict[str, int]:
    return bench.metrics.route("all", "app").fallbacks


async def test_another_upstream_gets_the_same() -> None:
    """The same target, headers and body; Host is its own."""
    bench = Bench(fail(ConnectFailed()))
    bench.others[BACKUP] = [ok(b"backup", 201, etag='"1"')]
    response = await bench.route(fallback=[ASK, LATER])("POST", b"body", target=b"/a?b=c", x_key="k")
    assert (response.status, response.body, shown(response, "etag")) == (201, b"backup", '"1"')
    [(_, asked)] = bench.asked
    request = asked.request
    assert (request.method, request.target, request.body) == ("POST", b"/a?b=c", b"body")
    assert request.host == b"backup.example.com:81"
    assert request.header(b"x-key") == b"k"
    sent = bench.sent[0]
    assert sent.request.host == b"test"
    assert (sent.upstream, sent.attempts, sent.rung) == (BACKUP, 2, "upstream")
    assert sent.note_list is not None
    assert sent.note_list[-1] == ("fallback", "rung=upstream")
    assert counted(bench) == {"upstream": 1}


async def test_its_answer_is_marked_and_not_to_be_kept() -> None:
    """Whatever it says of its freshness, caches further out would take it for the real one."""
    bench = Bench(fail(ConnectFailed()))
    bench.others[BACKUP] = [ok(b"", cache_control="max-age=60", expires="Thu, 01 Jan 2099 00:00:00 GMT")]
    response = await bench.route(fallback=[ASK])()
    assert [line.value for line in response.headers if line.name == b"cache-control"] == [b"no-store"]
    assert shown(response, "expires") is None
    assert shown(response, "sidecar-degraded") == "fallback;rung=upstream"


@pytest.mark.parametrize(
    ("outcome", "taken"),
    [
        (answer(200), True),
        (answer(302), True),
        (answer(404), True),
        (answer(401), False),
        (answer(429), False),
        (answer(500), False),
        (fail(ConnectFailed()), False),
        (fail(CircuitOpen()), False),
        (fail(EgressDenied()), False),
    ],
)
async def test_an_upstream_that_fails_in_turn(outcome: Outcome, taken: bool) -> None:
    """Then the next step has its turn; what the client did wrong is an answer here, too."""
    bench = Bench(fail(ConnectFailed()))
    bench.others[BACKUP] = [outcome]
    await bench.route(fallback=[ASK, LATER])()
    assert counted(bench) == ({"upstream": 1} if taken else {"respond": 1})


async def test_a_long_ladder() -> None:
    """Each step in turn, and what is discarded on the way is closed; the trail tells why."""
    body = Stream(None)
    bench = Bench(answer(503))
    bench.others = {BACKUP: [stream(body, status=502)], SECOND: [fail(ConnectionReset())]}
    response = await bench.route(fallback=[ASK, {"upstream": SECOND}, LATER])()
    assert response.body == b'{"status":"later"}'
    assert [name for name, _ in bench.asked] == [BACKUP, SECOND]
    assert body.end is End.DROPPED
    assert bench.sent[0].note_list == [
        ("upstream", "status=503"),
        ("classify", "transient"),
        ("upstream", "status=502;alternate"),
        ("classify", "transient;alternate"),
        ("fallback", "failed=transient"),
        ("upstream", "error=upstream_reset;alternate"),
        ("classify", "transient;alternate"),
        ("fallback", "failed=upstream_reset"),
        ("fallback", "rung=respond"),
    ]


async def test_when_all_fail_the_first_failure_is_the_answer() -> None:
    """The error, or the answer where it is still whole."""
    bench = Bench(fail(CircuitOpen(retry_after=3.0)), answer(503, b"first"))
    bench.others[BACKUP] = [fail(ConnectFailed())]
    send = bench.route(fallback=[ASK])
    response = await send()
    assert (response.status, shown(response, "sidecar-error")) == (503, "circuit_open")
    assert shown(response, "retry-after") == "3"
    response = await send()
    assert (response.status, response.body) == (503, b"first")
    bench.others[BACKUP] = [answer(500, b"second")]
    response = await send()
    assert (response.status, response.body) == (503, b"first")
    assert shown(response, "sidecar-degraded") is None
    assert counted(bench) == {"problem": 3}


async def test_where_the_first_answer_was_given_up_the_last_failure_is_the_answer() -> None:
    """It was still streaming when the second was asked: the second's own words are better than none."""
    bench = Bench(stream(Stream(None), status=503))
    bench.others = {BACKUP: [answer(500, b"second")], SECOND: [fail(ConnectFailed())]}
    response = await bench.route(fallback=[ASK])()
    assert (response.status, response.body) == (500, b"second")
    assert shown(response, "sidecar-degraded") is None
    response = await bench.route(fallback=[{"upstream": SECOND}])()
    assert (response.status, shown(response, "sidecar-error")) == (502, "connect_failed")
    assert counted(bench) == {"problem": 2}


async def test_a_streamed_body_goes_to_both() -> None:
    """What the first upstream read is sent to the second from its start."""
    got: list[bytes] = []

    async def reads_then_breaks(exchange: Exchange) -> Response:
        assert isinstance(exchange.request.body, Stream)
        got.append(await exchange.request.body.read())
        raise ConnectionReset

    async def reads_all(exchange: Exchange) -> Response:
        got.append(await _all(exchange))
        return Response(200, [], b"ok")

    bench = Bench(reads_then_breaks)
    bench.others[BACKUP] = [reads_all]
    body = Stream(None, 6)
    body.feed(b"abc")
    sent = bench.route(retry={"attempts": 2}, fallback=[ASK])("PUT", body)
    await bench.clock.advance(1)
    body.feed(b"def")
    body.finish()
    assert (await sent).status == 200
    assert got == [b"abc", b"abc", b"abcdef"]


async def test_a_body_that_is_not_kept_goes_nowhere_else() -> None:
    """Larger than `retry.max_body`: the step is passed over, and the trail says why."""

    async def reads_then_breaks(exchange: Exchange) -> Response:
        await _all(exchange)
        raise ConnectionReset

    bench = Bench(reads_then_breaks)
    bench.others[BACKUP] = [answer()]
    body = Stream(None)
    body.feed(b"0123456789")
    body.finish()
    response = await bench.route(retry={"attempts": 1, "max_body": "9B"}, fallback=[ASK, LATER])("PUT", body)
    assert response.body == b'{"status":"later"}'
    assert bench.asked == []
    assert bench.sent[0].note_list is not None
    assert ("fallback", "skipped=body-too-large") in bench.sent[0].note_list


@pytest.mark.parametrize(
    ("method", "outcome", "settings", "asked"),
    [
        ("POST", fail(ConnectFailed()), {}, True),
        ("POST", fail(CircuitOpen()), {}, True),
        ("POST", fail(LimitExceeded()), {}, True),
        ("POST", fail(ConnectionReset()), {}, False),
        ("POST", fail(AttemptTimeout()), {}, False),
        ("POST", answer(503), {}, False),
        ("PUT", fail(ConnectionReset()), {}, True),
        ("GET", answer(503), {}, True),
        ("POST", answer(503), {"fallback": [{**ASK, "methods": ["POST"]}]}, True),
        ("GET", answer(503), {"fallback": [{**ASK, "methods": ["POST"]}]}, False),
        ("POST", answer(503), {"retry": {"attempts": 1, "methods": ["POST"]}}, True),
        ("POST", answer(503), {"cache": {"methods": ["POST"], "key": {"body": "json"}}}, True),
    ],
)
async def test_who_may_get_a_request_twice(
    method: str, outcome: Outcome, settings: dict[str, Any], asked: bool
) -> None:
    """A second upstream gets what the first may have acted on only if that can do no harm, or is meant."""
    bench = Bench(outcome)
    bench.others[BACKUP] = [answer()]
    await bench.route(**{"fallback": [ASK], **settings})(method)
    assert bool(bench.asked) == asked


async def test_a_skipped_step_leaves_the_answer_whole() -> None:
    """Nobody else was asked: the upstream's answer goes to the client as it is, streaming."""
    body = Stream(None)
    bench = Bench(stream(body, status=503))
    bench.others[BACKUP] = [answer()]
    response = await bench.route(fallback=[ASK])("POST")
    body.feed(b"theirs")
    body.finish()
    assert (response.status, await content(response)) == (503, b"theirs")


async def test_a_client_that_breaks_off_ends_the_search() -> None:
    """Its body did not come to an end: nobody else is asked, and nothing is answered in another's stead."""
    bench = Bench(fail(ConnectFailed()))
    bench.others[BACKUP] = [fail(BodyTooLarge())]
    response = await bench.route(fallback=[ASK, LATER])()
    assert shown(response, "sidecar-error") == "body_too_large"
    assert counted(bench) == {}


async def test_a_client_that_leaves_ends_the_search() -> None:
    """The attempt at the second upstream is cancelled with its client; no step follows."""
    bench = Bench(fail(ConnectFailed()))
    bench.others[BACKUP] = [hang()]
    sent = bench.route(fallback=[ASK, LATER])()
    await settle()
    sent.cancel()
    await asyncio.gather(sent, return_exceptions=True)
    assert sent.cancelled()
    assert counted(bench) == {}


# -- time and policies of the other upstream -------------------------------------------------------


async def test_it_has_what_is_left_of_the_deadline() -> None:
    """The route's deadline is for the whole request: a second upstream gets the rest of it."""
    bench = Bench(hang())
    bench.others[BACKUP] = [hang()]
    sent = bench.route(deadline="5s", attempt_timeout="3s", fallback=[ASK])()
    response = await bench.clock.complete(sent)
    assert bench.clock.now() == pytest.approx(1005.0)
    assert (response.status, shown(response, "sidecar-error")) == (504, "attempt_timeout")
    [(_, asked)] = bench.asked
    assert asked.deadline == 1005.0


async def test_it_may_have_time_of_its_own() -> None:
    """Counted from its own start; a template answers even when all time is up."""
    bench = Bench(hang())
    bench.others[BACKUP] = [hang()]
    sent = bench.route(deadline="5s", fallback=[{**ASK, "deadline": "2s"}, LATER])()
    response = await bench.clock.complete(sent)
    assert bench.clock.now() == pytest.approx(1007.0)
    assert response.body == b'{"status":"later"}'


async def test_nothing_is_left_for_it() -> None:
    """A first upstream that hangs to the end: the second is not asked, and the next step answers at once."""
    bench = Bench(hang())
    bench.others[BACKUP] = [answer()]
    response = await bench.clock.complete(bench.route(deadline="5s", fallback=[ASK, LATER])())
    assert bench.clock.now() == pytest.approx(1005.0)
    assert bench.asked == []
    assert response.body == b'{"status":"later"}'


async def test_its_policies_are_its_own() -> None:
    """The route's breaker and retries are not for it; those that the step names are, under its own name."""
    bench = Bench(fail(ConnectionReset()))
    bench.others[BACKUP] = [fail(ConnectionReset())]
    breaker = {"consecutive": 2, "open_for": "10s"}
    quick = {"strategy": "fixed", "base": "0ms"}
    step = {**ASK, "circuit_breaker": breaker, "retry": {"attempts": 2, "backoff": quick}}
    send = bench.route(fallback=[step, LATER], circuit_breaker={**breaker, "consecutive": 9})
    for _ in range(3):
        assert (await send()).status == 200
    assert (len(bench.calls), len(bench.asked)) == (3, 2)
    now = bench.clock.now()
    states = {name: cells.breaker.state(now).value for name, cells in bench.metrics.breakers.items()}
    assert states == {"app": "closed", BACKUP: "open"}
    assert bench.metrics.upstream(BACKUP).attempts()[Verdict.TRANSIENT] == 2
    assert bench.sent[-1].note_list is not None
    assert ("fallback", "failed=circuit_open") in bench.sent[-1].note_list
    assert bench.metrics.route("all", "app").upstream == "app"

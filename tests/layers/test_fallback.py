"""The fallback layer over a scripted upstream: who answers when there is no good answer, and how."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sidecar.errors import (
    AttemptTimeout,
    BadRequest,
    BadUpstreamResponse,
    BodyTooLarge,
    CacheMissed,
    CircuitOpen,
    ClientGone,
    ConnectFailed,
    ConnectionReset,
    DeadlineExceeded,
    LimitExceeded,
    PaceExceeded,
    QuotaHeld,
    SidecarError,
)
from sidecar.exchange import End, Exchange, Response, Stream
from tests.support.script import Bench, Outcome, answer, content, fail, ok, shown, stream

BACKUP = "http://backup.example.com:81"
SECOND = "http://second.example.com"
LATER: dict[str, Any] = {"respond": {"status": 200, "json": {"status": "later"}}}
ASK: dict[str, Any] = {"upstream": BACKUP}
EVERY: list[str] = ["transient", "rate_limited", "quota", "auth"]


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


# -- what falls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ConnectFailed(), "transient"),
        (ConnectionReset(), "transient"),
        (BadUpstreamResponse(), "transient"),
        (AttemptTimeout(), "transient"),
        (CircuitOpen(), "transient"),
        (LimitExceeded(), "transient"),
        (DeadlineExceeded(), "transient"),
        (PaceExceeded(), "rate_limited"),
        (QuotaHeld(), "quota"),
    ],
)
async def test_errors_fall_by_their_verdict(error: SidecarError, verdict: str) -> None:
    """Each error is for the steps that list its verdict, and for no others."""
    bench = Bench(fail(error))
    others = [word for word in EVERY if word != verdict]
    fits = await bench.route(fallback=[{**LATER, "on": [verdict]}])()
    assert (fits.status, shown(fits, "sidecar-degraded")) == (200, "fallback;rung=respond")
    passes = await bench.route(fallback=[{**LATER, "on": others}])()
    assert (passes.status, shown(passes, "sidecar-error")) == (error.status, error.code)
    assert counted(bench) == {"respond": 1, "problem": 1}


@pytest.mark.parametrize("error", [BadRequest(), BodyTooLarge(), ClientGone(), CacheMissed()])
async def test_the_clients_own_errors_never_fall(error: SidecarError) -> None:
    """They are answers: no step is looked at, and nothing is counted."""
    bench = Bench(fail(error))
    response = await bench.route(fallback=[{**LATER, "on": EVERY}])()
    assert shown(response, "sidecar-error") == error.code
    assert (counted(bench), bench.sent[-1].rung) == ({}, "")


@pytest.mark.parametrize(
    ("status", "falls"),
    [
        *[(status, False) for status in (200, 204, 304, 400, 401, 403, 404)],
        *[(status, True) for status in (408, 429, 500, 503)],
    ],
)
async def test_answers_fall_by_their_verdict(status: int, falls: bool) -> None:
    """Failures and limits do; refused credentials and the client's faults do not, unless a step says so."""
    bench = Bench(answer(status, b"theirs"))
    response = await bench.route(fallback=[LATER])()
    assert (response.body == b'{"status":"later"}') == falls
    assert (shown(response, "sidecar-degraded") is not None) == falls
    assert counted(bench) == ({"respond": 1} if falls else {})


async def test_auth_falls_where_it_is_listed() -> None:
    """A key that is refused may be a reason to answer something else."""
    bench = Bench(answer(401))
    response = await bench.route(fallback=[{**LATER, "on": ["auth"]}])()
    assert response.body == b'{"status":"later"}'


async def test_a_bug_is_not_covered_up() -> None:
    """What is no error of ours goes up, to be logged with its traceback."""

    async def broken(_: Exchange) -> Response:
        raise ZeroDivisionError

    response = await Bench(broken).route(fallback=[LATER])()
    assert (response.status, shown(response, "sidecar-error")) == (500, "internal_error")


async def test_the_first_step_for_the_verdict_answers() -> None:
    """Steps are tried in their order; those for other verdicts are passed over."""
    bench = Bench(answer(429))
    steps = [
        {"on": ["transient"], "respond": {"text": "first"}},
        {"on": ["quota", "rate_limited"], "respond": {"text": "second"}},
        {"respond": {"text": "third"}},
    ]
    assert (await bench.route(fallback=steps)()).body == b"second"
    bench.script = [answer(503)]
    assert (await bench.route(fallback=steps)()).body == b"first"
    bench.script = [fail(QuotaHeld())]
    assert (await bench.route(fallback=steps)()).body == b"second"


async def test_without_a_step_the_failure_is_the_answer() -> None:
    """The upstream's own answer, whole, or the problem that describes the error; counted as what it is."""
    bench = Bench(answer(503, b"theirs"), fail(ConnectionReset()))
    send = bench.route(fallback=[{**LATER, "on": ["quota"]}])
    response = await send()
    assert (response.status, response.body) == (503, b"theirs")
    assert shown(response, "sidecar-degraded") is None
    response = await send()
    assert (response.status, shown(response, "content-type")) == (502, "application/problem+json")
    assert counted(bench) == {"problem": 2}
    assert [exchange.rung for exchange in bench.sent] == ["problem", "problem"]


# -- the answer from a template --------------------------------------------------------------------


async def test_the_answer_is_made_from_the_request() -> None:
    """Path variables and parameters, decoded; status and headers as written."""
    bench = Bench(fail(ConnectFailed()))
    send = bench.route(
        match={"path": "/cart/{id}"},
        fallback=[
            {
                "respond": {
                    "status": 203,
                    "headers": {"X-Cart": "{id}", "Retry-After": "7"},
                    "json": {"id": "{id}", "q": ["{query.q}", "{query.none}"]},
                }
            }
        ],
    )
    response = await send(target=b"/cart/a%20%22b%0D%0AX:%20y?q=%C3%A9+%22")
    assert response.status == 203
    assert json.loads(await content(response)) == {"id": 'a "b\r\nX: y', "q": ['é "', ""]}
    assert [line.wire for line in response.headers] == [
        b"Content-Type: application/json\r\n",
        b"X-Cart: a%20%22b%0D%0AX%3A%20y\r\n",
        b"Retry-After: 7\r\n",
        b"Cache-Control: no-store\r\n",
        b"Sidecar-Degraded: fallback;rung=respond\r\n",
    ]


async def test_the_template_may_say_how_long_it_is_fresh() -> None:
    """`no-store` stands unless the template has a Cache-Control of its own; the same with Content-Type."""
    bench = Bench(fail(ConnectFailed()))
    headers = {"cache-control": "max-age=5", "Content-Type": "text/html"}
    response = await bench.route(fallback=[{"respond": {"headers": headers, "text": "<p>{query.q}"}}])(
        target=b"/?q=<script>"
    )
    assert shown(response, "cache-control") == "max-age=5"
    assert shown(response, "content-type") == "text/html"
    assert response.body == b"<p>&lt;script&gt;"


async def test_no_body_has_no_type() -> None:
    """An answer may be its status alone."""
    response = await Bench(fail(ConnectFailed())).route(fallback=[{"respond": {"status": 503}}])()
    assert (response.status, response.body, shown(response, "content-type")) == (503, b"", None)


async def test_answers_do_not_share_their_lines() -> None:
    """What is added to one answer is not in the next."""
    send = Bench(fail(ConnectFailed())).route(fallback=[LATER], cache={"ttl": "1m"})
    first = await send()
    assert (shown(first, "cache-status") or "").count("sidecar") == 1
    second = await send()
    assert second.plain == first.plain
    assert second.plain is not None
    assert second.plain.count(b"Cache-Status") == 1


async def test_a_head_gets_the_head() -> None:
    """The length that a GET would have had, and no body."""
    send = Bench(fail(ConnectFailed())).route(fallback=[LATER])
    length = len(await content(await send()))
    response = await send("HEAD")
    assert (response.status, response.body) == (200, b"")
    assert response.header(b"content-length") == b"%d" % length


async def test_a_discarded_answer_is_closed_first() -> None:
    """Its connection is free before anybody else is asked, or anything else is said."""
    body = Stream(None)
    seen: list[End | None] = []

    async def other(_: Exchange) -> Response:
        seen.append(body.end)
        return Response(200, [], b"backup")

    bench = Bench(stream(body, status=503))
    bench.others[BACKUP] = [other]
    assert (await bench.route(fallback=[ASK])()).body == b"backup"
    assert seen == [End.DROPPED]
    body = Stream(None)
    bench.script = [stream(body, status=503)]
    await bench.route(fallback=[LATER])()
    assert body.end is End.DROPPED


# -- with a cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (answer(503), 'sidecar; fwd=uri-miss; fwd-status=503; detail="fallback"'),
        (fail(ConnectFailed()), 'sidecar; fwd=miss; detail="fallback"'),
    ],
)
async def test_the_cache_says_what_it_did(outcome: Outcome, status: str) -> None:
    """It had nothing, and what came instead is neither its own nor stored: the next is a miss again."""
    bench = Bench(outcome)
    send = bench.route(cache={"ttl": "1m"}, fallback=[LATER])
    for _ in range(2):
        response = await send()
        assert shown(response, "cache-status") == status
        assert shown(response, "cache-control") == "no-store"
        assert response.body == b'{"status":"later"}'
    assert len(bench.calls) == 2
    assert bench.outcomes == ["miss", "miss"]


async def test_past_the_cache_it_says_so() -> None:
    """A method that is not cached was never looked up."""
    send = Bench(fail(ConnectFailed())).route(cache={"ttl": "1m"}, fallback=[LATER])
    assert shown(await send("POST"), "cache-status") == 'sidecar; fwd=bypass; detail="fallback"'
    assert shown(await send("HEAD"), "cache-status") == 'sidecar; fwd=miss; detail="fallback"'


async def test_without_a_cache_there_is_nothing_to_say() -> None:
    """What a cache in front of the upstream said of its failure is not said of another answer."""
    send = Bench(ok(b"", 503, cache_status="cdn; fwd=miss")).route(fallback=[LATER])
    assert shown(await send(), "cache-status") is None


async def test_another_upstreams_answer_is_not_stored() -> None:
    """Not even one that says how long it is fresh."""
    bench = Bench(fail(ConnectFailed()), ok(b"real", cache_control="max-age=60"))
    bench.others[BACKUP] = [ok(b"backup", cache_control="max-age=60", cache_status="cdn; hit")]
    send = bench.route(cache={}, fallback=[ASK])
    response = await send()
    assert response.body == b"backup"
    said = [line.value for line in response.headers if line.name == b"cache-status"]
    assert said == [b"cdn; hit", b'sidecar; fwd=miss; detail="fallback"']
    assert (await send()).body == b"real"


async def test_all_who_waited_in_vain_are_answered() -> None:
    """One fill fails for all who wait: each gets an answer of its own, and each is counted."""
    bench = Bench()

    async def later(_: Exchange) -> Response:
        await bench.clock.sleep(1)
        raise ConnectionReset

    bench.script = [later]
    send = bench.route(match={"path": "/{id}"}, cache={"ttl": "1m"}, fallback=[LATER])
    responses = await bench.clock.complete(asyncio.gather(*[send(target=b"/7") for _ in range(20)]))
    assert {response.status for response in responses} == {200}
    assert len(bench.calls) == 1
    assert counted(bench) == {"respond": 20}


async def test_an_error_that_the_origin_has_stored_is_an_error() -> None:
    """A 503 with a lifetime of its own is answered from the store, and falls like any other."""
    bench = Bench(ok(b"down", 503, cache_control="max-age=60"))
    send = bench.route(cache={}, fallback=[LATER])
    said = []
    for _ in range(3):
        response = await send()
        assert response.body == b'{"status":"later"}'
        said.append(shown(response, "cache-status"))
    assert len(bench.calls) == 1
    hit = 'sidecar; hit; detail="fallback"'
    assert said == ['sidecar; fwd=uri-miss; fwd-status=503; stored; detail="fallback"', hit, hit]
    assert counted(bench) == {"respond": 3}

"""What the cache layer makes of a stored answer: stale use, validation, conditions, parts, HEAD."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.errors import AttemptTimeout, CircuitOpen, ConnectFailed, ConnectionReset, SidecarError
from sidecar.exchange import Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, answer, fail, hang, lines, ok, shown, stream

SWR: dict[str, Any] = {"cache": {"ttl": "10s", "stale_while_revalidate": "1m"}}
SIE: dict[str, Any] = {"cache": {"ttl": "10s", "stale_if_error": "1h"}}


# -- stale while revalidating ---------------------------------------------------------------------


async def test_stale_is_served_while_one_fill_refreshes() -> None:
    """All stale hits are answered at once; exactly one fill runs; then hits are of what it brought."""
    bench = Bench(ok(b"one"))
    send = bench.route(**SWR)
    await send()
    await bench.clock.advance(11)

    async def later(exchange: Exchange) -> Response:
        await bench.clock.sleep(5)
        return Response(200, [], b"two")

    bench.script = [later]
    for _ in range(20):
        response = await send()
        assert (response.body, shown(response, "cache-status")) == (b"one", "sidecar; hit; ttl=-1")
        assert shown(response, "sidecar-degraded") is None
    await bench.clock.advance(5)
    assert len(bench.calls) == 2
    response = await send()
    assert (response.body, shown(response, "age")) == (b"two", "5")  # RFC 9111, 4.2.3
    assert bench.outcomes == ["miss", *["updating"] * 20, "hit"]


async def test_past_the_window_the_client_waits() -> None:
    """Past `stale_while_revalidate` the origin is asked first."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(**SWR)
    await send()
    await bench.clock.advance(70)
    assert (await send()).body == b"two"


async def test_the_origins_window_comes_first() -> None:
    """`stale-while-revalidate` of the origin counts, not the policy's."""
    bench = Bench(ok(b"one", cache_control="max-age=10, stale-while-revalidate=5"), ok(b"two"))
    send = bench.route(**SWR)
    await send()
    await bench.clock.advance(15)
    assert (await send()).body == b"two"


@pytest.mark.parametrize("outcome", [fail(ConnectFailed()), ok(b"down", 503), ok(b"", 404)])
async def test_a_failed_refresh_harms_nobody(outcome: Outcome) -> None:
    """The stale answer is served on, whatever the background fill met, and the next one mends it."""
    bench = Bench(ok(b"one"), outcome, ok(b"two"))
    send = bench.route(**SWR)
    await send()
    await bench.clock.advance(11)
    assert (await send()).body == b"one"
    await settle()
    assert len(bench.calls) == 2
    await bench.clock.advance(5)
    assert (await send()).body == b"one"
    await settle()
    assert (await send()).body == b"two"


async def test_a_refresh_has_a_deadline_of_its_own() -> None:
    """A background fill that hangs ends at the route's deadline, counted from its own start."""
    bench = Bench(ok(b"one"), hang())
    send = bench.route(**SWR, deadline="2s")
    await send()
    await bench.clock.advance(11)
    assert (await send()).body == b"one"
    assert len(bench.caching.fills) == 1
    await bench.clock.advance(1.9)
    assert bench.seen[1].deadline == 1013.0
    assert len(bench.caching.fills) == 1
    await bench.clock.advance(0.2)
    assert len(bench.caching.fills) == 0


async def test_a_conditional_request_refreshes_too() -> None:
    """A browser that asks with its own copy's tag starts the refresh; the origin is asked for the whole."""
    bench = Bench(ok(b"one", etag='"1"'), ok(b"two", etag='"2"'))
    send = bench.route(**SWR)
    await send()
    await bench.clock.advance(11)
    assert (await send(if_none_match='"1"')).status == 304
    await settle()
    assert bench.seen[1].request.header(b"if-none-match") == b'"1"'
    assert (await send(if_none_match='"1"')).body == b"two"


async def test_a_refresh_asks_for_the_whole() -> None:
    """A request for a part of a stale answer without validators refreshes all of it."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(**SWR)
    await send()
    await bench.clock.advance(11)
    response = await send(range="bytes=0-0")
    assert (response.status, response.body) == (206, b"o")
    await settle()
    assert bench.seen[1].request.header(b"range") is None
    assert (await send()).body == b"two"


# -- stale on error -------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [
    ok(b"", 500), ok(b"", 502), ok(b"", 503), ok(b"", 504), ok(b"", 429),
    fail(ConnectFailed()), fail(ConnectionReset()), fail(AttemptTimeout()), hang(),
])  # fmt: skip
async def test_stale_stands_in_for_an_error(outcome: Outcome) -> None:
    """Within `stale_if_error` the client gets the stored answer, marked as degraded."""
    bench = Bench(ok(b"one"), outcome)
    send = bench.route(**SIE, deadline="2s")
    await send()
    await bench.clock.advance(3607)
    response = await bench.clock.complete(send())
    assert (response.status, response.body) == (200, b"one")
    assert shown(response, "sidecar-degraded") == "stale"
    assert 'detail="stale-if-error"' in (shown(response, "cache-status") or "")
    assert bench.outcomes == ["miss", "stale"]


async def test_the_body_of_the_error_is_closed() -> None:
    """What the stale answer stands in for holds no slot."""
    body = Stream(None)
    bench = Bench(ok(b"one"), stream(body, 503))
    send = bench.route(**SIE, concurrency_limit={"max": 1})
    await send()
    await bench.clock.advance(11)
    assert (await send()).body == b"one"
    body.finish()
    await settle()
    assert bench.metrics.limits["app"].in_flight == 0


async def test_all_who_wait_get_the_stale_answer() -> None:
    """One failing call is enough for all of them."""
    bench = Bench(ok(b"one"))
    send = bench.route(**SIE)
    await send()
    await bench.clock.advance(11)

    async def later(_: Exchange) -> Response:
        await bench.clock.sleep(1)
        return Response(503, [], b"")

    bench.script = [later]
    responses = await bench.clock.complete(asyncio.gather(*[send() for _ in range(10)]))
    assert [response.body for response in responses] == [b"one"] * 10
    assert len(bench.calls) == 2


@pytest.mark.parametrize(("said", "at"), [
    ({"cache_control": "max-age=10, must-revalidate"}, 11),
    ({"cache_control": "s-maxage=10"}, 11),
    ({"cache_control": "max-age=10, stale-if-error=5"}, 16),
    ({}, 3611),
])  # fmt: skip
async def test_no_stale_answer_where_it_is_forbidden_or_too_old(said: dict[str, Any], at: float) -> None:
    """`must-revalidate` and `s-maxage` forbid stale use; the origin's own window counts, and it ends."""
    bench = Bench(ok(b"one", **said), fail(ConnectFailed()))
    send = bench.route(**SIE)
    await send()
    await bench.clock.advance(at)
    assert (await send()).status == 502


async def test_a_clients_fault_is_no_error() -> None:
    """A 404 to the validation is the answer."""
    bench = Bench(ok(b"one"), ok(b"gone", 404))
    send = bench.route(**SIE)
    await send()
    await bench.clock.advance(11)
    assert (await send()).status == 404


# -- what a client may ask ------------------------------------------------------------------------


async def test_only_if_cached() -> None:
    """Without a stored answer `only-if-cached` gets a 504 and the origin no call."""
    bench = Bench(ok(b"one"))
    send = bench.route(**SIE)
    response = await send(cache_control="only-if-cached")
    assert (response.status, response.header(b"sidecar-error")) == (504, b"only_if_cached")
    assert bench.calls == []
    await send()
    assert (await send(cache_control="only-if-cached")).body == b"one"
    await bench.clock.advance(11)
    assert (await send(cache_control="only-if-cached")).status == 504


@pytest.mark.parametrize("asked", ["no-cache", "max-age=1", "min-fresh=9"])
async def test_a_client_may_want_it_fresher(asked: str) -> None:
    """The request forbids what is stored: the origin is asked, and RFC 9211 says why."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(**SIE)
    await send()
    await bench.clock.advance(2)
    response = await send(cache_control=asked)
    assert response.body == b"two"
    assert shown(response, "cache-status") == "sidecar; fwd=request; fwd-status=200; stored"
    assert (await send()).body == b"two"


async def test_a_client_may_take_it_staler() -> None:
    """`max-stale` takes a stale answer without asking the origin."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(**SIE)
    await send()
    await bench.clock.advance(15)
    assert (await send(cache_control="max-stale=4")).body == b"two"
    await bench.clock.advance(14)
    assert shown(await send(cache_control="max-stale=4"), "cache-status") == "sidecar; hit; ttl=-4"


# -- validation -----------------------------------------------------------------------------------


async def test_a_304_brings_the_stored_answer_up_to_date() -> None:
    """The headers of a 304 replace those stored, the body stays, and hits follow."""
    bench = Bench(
        ok(b"one", etag='"1"', x_version="1", last_modified="Tue, 14 Nov 2023 00:00:00 GMT"),
        ok(b"", 304, etag='"1"', x_version="2"),
    )
    send = bench.route(cache={"ttl": "10s"})
    await send()
    await bench.clock.advance(11)
    response = await send()
    asked = bench.seen[1].request
    assert asked.header(b"if-none-match") == b'"1"'
    assert asked.header(b"if-modified-since") == b"Tue, 14 Nov 2023 00:00:00 GMT"
    assert (response.status, response.body, shown(response, "x-version")) == (200, b"one", "2")
    assert shown(response, "cache-status") == "sidecar; fwd=stale; fwd-status=304; ttl=10; stored"
    await bench.clock.advance(9)
    response = await send()
    assert (response.body, shown(response, "x-version"), shown(response, "age")) == (b"one", "2", "9")
    assert bench.outcomes == ["miss", "revalidated", "hit"]


async def test_one_validation_for_all() -> None:
    """However many find it stale, the origin is asked once."""
    bench = Bench(ok(b"one", etag='"1"'))
    send = bench.route(cache={"ttl": "10s"})
    await send()
    await bench.clock.advance(11)

    async def later(_: Exchange) -> Response:
        await bench.clock.sleep(1)
        return Response(304, list(lines(etag='"1"')))

    bench.script = [later]
    responses = await bench.clock.complete(asyncio.gather(*[send() for _ in range(50)]))
    assert {(response.status, response.body) for response in responses} == {(200, b"one")}
    assert len(bench.calls) == 2


async def test_no_cache_is_validated_each_time() -> None:
    """An answer with `no-cache` is kept, and never used without asking."""
    bench = Bench(ok(b"one", cache_control="no-cache", etag='"1"'), ok(b"", 304, etag='"1"'))
    send = bench.route(cache={"ttl": "10s"})
    for _ in range(3):
        assert (await send()).body == b"one"
    assert len(bench.calls) == 3


@pytest.mark.parametrize(("asked", "status"), [
    ({"if_none_match": '"1"'}, 304),
    ({"if_none_match": 'W/"1"'}, 304),
    ({"if_none_match": '"2"'}, 200),
    ({"if_none_match": "*"}, 304),
    ({"if_modified_since": "Tue, 14 Nov 2023 00:00:00 GMT"}, 304),
    ({"if_modified_since": "Mon, 13 Nov 2023 00:00:00 GMT"}, 200),
    ({"if_match": '"1"'}, 200),
])  # fmt: skip
async def test_conditions_are_answered_from_the_store(asked: dict[str, Any], status: int) -> None:
    """A client's condition is judged on what is stored."""
    bench = Bench(ok(b"one", etag='"1"', last_modified="Tue, 14 Nov 2023 00:00:00 GMT"))
    send = bench.route(**SIE)
    await send()
    response = await send(**asked)
    assert (response.status, shown(response, "etag")) == (status, '"1"')
    assert response.body == (b"one" if status == 200 else b"")
    assert (shown(response, "age"), shown(response, "cache-status")) == ("0", "sidecar; hit; ttl=10")
    assert len(bench.calls) == 1


async def test_a_condition_only_the_origin_can_judge() -> None:
    """An `If-Match` that the stored answer fails goes to the origin as it is, once."""
    bench = Bench(ok(b"one", etag='"1"'), ok(b"", 412))
    send = bench.route(**SIE)
    await send()
    assert (await send(if_match='"2"')).status == 412
    assert len(bench.calls) == 2
    assert bench.seen[1].request.header(b"if-match") == b'"2"'
    assert bench.seen[1].request.header(b"if-none-match") is None
    assert (await send()).body == b"one"


async def test_a_condition_on_a_miss_is_kept() -> None:
    """The origin's 304 to a client's own condition is the client's, and not stored."""
    bench = Bench(ok(b"", 304, etag='"1"'), ok(b"one", etag='"1"'))
    send = bench.route(**SIE)
    assert (await send(if_none_match='"1"')).status == 304
    assert (await send()).body == b"one"


# -- parts and HEAD -------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "status", "body", "shown_range"), [
    ({"range": "bytes=2-4"}, 206, b"234", "bytes 2-4/10"),
    ({"range": "bytes=-3"}, 206, b"789", "bytes 7-9/10"),
    ({"range": "bytes=20-"}, 416, b"", "bytes */10"),
    ({"range": "bytes=2-4", "if_range": '"1"'}, 206, b"234", "bytes 2-4/10"),
    ({"range": "bytes=2-4", "if_range": '"2"'}, 200, b"0123456789", None),
    ({"range": "lines=2-4"}, 200, b"0123456789", None),
])  # fmt: skip
async def test_parts_of_whole_answers(
    asked: dict[str, Any], status: int, body: bytes, shown_range: str | None
) -> None:
    """Range and If-Range are answered from a whole stored answer."""
    bench = Bench(ok(b"0123456789", etag='"1"'))
    send = bench.route(**SIE)
    await send()
    response = await send(**asked)
    assert (response.status, response.body, shown(response, "content-range")) == (status, body, shown_range)
    assert len(bench.calls) == 1


async def test_a_part_from_the_origin_is_not_stored() -> None:
    """A 206 goes to the client who asked for it, and to nobody else."""
    bench = Bench(ok(b"0", 206, content_range="bytes 0-0/10"), ok(b"0123456789"))
    send = bench.route(**SIE)
    assert (await send(range="bytes=0-0")).status == 206
    assert bench.seen[0].request.header(b"range") == b"bytes=0-0"
    assert (await send()).body == b"0123456789"


async def test_head_from_get() -> None:
    """A HEAD gets the headers of the stored GET with its length; a HEAD alone stores nothing."""
    bench = Bench(ok(b""), ok(b"one", x_version="1"))
    send = bench.route(**SIE)
    await send("HEAD")
    await send()
    response = await send("HEAD")
    assert (response.status, response.body) == (200, b"")
    assert (shown(response, "content-length"), shown(response, "x-version")) == ("3", "1")
    assert len(bench.calls) == 2


async def test_head_shows_that_it_changed() -> None:
    """A HEAD to the origin whose tag is new makes the stored GET of no use (RFC 9111, 4.3.5)."""
    bench = Bench(ok(b"one", etag='"1"'), ok(b"", etag='"2"'), ok(b"two", etag='"2"'))
    send = bench.route(**SIE)
    await send()
    await send("HEAD", cache_control="no-cache")
    assert (await send()).body == b"two"


async def test_upgrades_pass() -> None:
    """A request to change the protocol is none of the cache's affair."""
    bench = Bench(answer(101))
    send = bench.route(**SIE)
    place = send("GET", connection="upgrade")
    bench.sent[0].request.upgrade = True
    assert (await place).status == 101
    assert bench.outcomes == ["bypass"]


@pytest.mark.parametrize(
    ("request_", "error", "status"),
    [
        ({}, ConnectionReset(), "sidecar; fwd=uri-miss"),
        ({"method": "POST"}, ConnectionReset(), "sidecar; fwd=method"),
        ({"method": "HEAD"}, ConnectionReset(), "sidecar; fwd=uri-miss"),
        ({"cache_control": "no-store"}, CircuitOpen(), "sidecar; fwd=bypass"),
        ({"cache_control": "only-if-cached"}, ConnectionReset(), 'sidecar; detail="only-if-cached"'),
    ],
)
async def test_an_error_says_what_the_cache_did(
    request_: dict[str, str], error: SidecarError, status: str
) -> None:
    """Our own answers on a route with a cache carry Cache-Status too, and are counted (RFC 9211, 2)."""
    bench = Bench(fail(error))
    response = await bench.route(cache={"ttl": "1m"})(**request_)
    assert response.status >= 500
    assert shown(response, "cache-status") == status
    assert sum(bench.metrics.route("all", "app").cache.values()) == 1


async def test_an_error_that_is_shared_says_so() -> None:
    """Who joined the fill that failed is told apart from who began it."""
    bench = Bench(fail(ConnectionReset()))
    send = bench.route(cache={"ttl": "1m"})
    responses = await asyncio.gather(send(), send())
    assert [shown(response, "cache-status") for response in responses] == [
        "sidecar; fwd=uri-miss",
        "sidecar; fwd=uri-miss; collapsed",
    ]


async def test_a_refusal_above_the_cache_says_nothing_of_it() -> None:
    """An error of a route without a cache has no Cache-Status."""
    bench = Bench(fail(ConnectionReset()))
    assert shown(await bench.route()(), "cache-status") is None

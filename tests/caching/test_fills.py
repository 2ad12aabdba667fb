"""Many requests for one answer: who asks the origin, who waits, who gets what."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.caching.control import Control
from sidecar.clock import Ids
from sidecar.errors import ConnectFailed, SidecarError
from sidecar.exchange import End, Exchange, Response, Stream
from sidecar.pipeline import Handler
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, Send, content, fail, hang, lines, ok, shown, stream

HOUR: dict[str, Any] = {"cache": {"ttl": "1h"}}


def slow(outcome: Outcome, bench: Bench, seconds: float = 1.0) -> Outcome:
    """`outcome`, later."""

    async def later(exchange: Exchange) -> Response:
        await bench.clock.sleep(seconds)
        response: Response = await outcome(exchange)
        return response

    return later


async def crowd(bench: Bench, send: Send, count: int, **headers: str) -> list[Response]:
    """The answers to so many requests at once."""
    return await bench.clock.complete(asyncio.gather(*[send(**headers) for _ in range(count)]))


@pytest.mark.parametrize("count", [100, 1000])
async def test_one_call_for_all(count: int) -> None:
    """However many miss at once, the origin is asked once, and all get its answer."""
    bench = Bench()
    bench.script = [slow(ok(b"one"), bench)]
    responses = await crowd(bench, bench.route(**HOUR), count)
    assert len(bench.calls) == 1
    assert {(response.status, response.body) for response in responses} == {(200, b"one")}
    marks = [shown(response, "cache-status") for response in responses]
    assert marks.count("sidecar; fwd=uri-miss; fwd-status=200; stored") == 1
    assert marks.count("sidecar; fwd=uri-miss; fwd-status=200; stored; collapsed") == count - 1
    assert sorted(bench.outcomes) == ["collapsed"] * (count - 1) + ["miss"]
    assert len(bench.caching.fills) == 0


async def test_all_who_wait_get_the_error_once() -> None:
    """A fill that fails is the answer for all who wait; the next request tries again."""
    bench = Bench()
    bench.script = [slow(fail(ConnectFailed()), bench), ok(b"back")]
    send = bench.route(**HOUR)
    responses = await crowd(bench, send, 50)
    assert [response.status for response in responses] == [502] * 50
    assert len(bench.calls) == 1
    assert (await send()).body == b"back"


async def test_an_error_status_is_shared_once() -> None:
    """A 503 is the answer for all who wait, too, and is not stored."""
    bench = Bench()
    bench.script = [slow(ok(b"down", 503), bench), ok(b"up")]
    send = bench.route(**HOUR)
    responses = await crowd(bench, send, 20)
    assert [(response.status, response.body) for response in responses] == [(503, b"down")] * 20
    assert len(bench.calls) == 1
    assert (await send()).body == b"up"


@pytest.mark.parametrize(("said", "calls"), [
    ({}, 1),
    ({"cache_control": "no-store"}, 1),
    ({"cache_control": "private"}, 5),
    ({"set_cookie": "id=1"}, 5),
    ({"set_cookie": "id=1", "cache_control": "no-store"}, 5),
])  # fmt: skip
async def test_an_error_with_something_personal_is_not_shared(said: dict[str, Any], calls: int) -> None:
    """An error that says `private` or sets a cookie goes to one client; any other to all who wait."""
    bench = Bench()
    bench.script = [slow(ok(b"down", 503, **said), bench)]
    await crowd(bench, bench.route(**HOUR), 5)
    assert len(bench.calls) == calls


async def test_an_error_is_shared_among_equal_credentials() -> None:
    """All who wait with the same `Authorization` get the same error once."""
    bench = Bench()
    bench.script = [slow(ok(b"down", 503), bench)]
    responses = await crowd(bench, bench.route(**HOUR), 20, authorization="Bearer a")
    assert [response.status for response in responses] == [503] * 20
    assert len(bench.calls) == 1


async def test_a_bug_below_leaves_nobody_waiting() -> None:
    """An exception that is no error of ours reaches all who wait."""

    async def broken(_: Exchange) -> Response:
        await bench.clock.sleep(1)
        raise RuntimeError("bug")

    bench = Bench(broken)
    responses = await crowd(bench, bench.route(**HOUR), 3)
    assert [response.status for response in responses] == [500] * 3


# -- clients that leave -----------------------------------------------------------------------------


async def leave(*tasks: asyncio.Task[Response]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_all_clients_leave_and_it_is_stored_yet() -> None:
    """A fill goes on when nobody waits for it any more: the next request is a hit."""
    bench = Bench()
    bench.script = [slow(ok(b"one"), bench)]
    send = bench.route(**HOUR)
    waiting = [send() for _ in range(3)]
    await settle()
    await leave(*waiting)
    await bench.clock.advance(1)
    assert shown(await send(), "cache-status") == "sidecar; hit; ttl=3600"
    assert len(bench.calls) == 1


async def test_a_private_answer_nobody_waits_for_is_closed() -> None:
    """A body for a client who left before the head came is given up, and its slot is free again."""
    body = Stream(None)
    bench = Bench()
    bench.script = [slow(stream(body, cache_control="private"), bench), ok(b"two")]
    send = bench.route(**HOUR, concurrency_limit={"max": 1})
    client = send()
    await settle()
    await leave(client)
    await bench.clock.advance(1)
    assert body.end is End.DROPPED
    assert bench.metrics.limits["app"].in_flight == 0
    assert (await send()).body == b"two"


async def test_a_client_that_leaves_as_its_answer_comes_leaks_nothing() -> None:
    """The client goes in the very turn in which its private answer is handed over."""
    body = Stream(None)
    bench = Bench()
    client: asyncio.Task[Response] | None = None

    async def outcome(_: Exchange) -> Response:
        assert client is not None
        asyncio.get_running_loop().call_soon(client.cancel)
        return Response(200, [], body)

    bench.script = [outcome]
    send = bench.route(cache={}, concurrency_limit={"max": 1})
    client = send()
    await settle()
    assert client.cancelled()
    assert body.end is End.DROPPED
    assert bench.metrics.limits["app"].in_flight == 0


async def test_what_nobody_else_may_have_ends_with_its_client() -> None:
    """A request that is not shared is ended when its client leaves: its slot is free at once."""
    bench = Bench(hang())
    send = bench.route(**HOUR, concurrency_limit={"max": 1})
    client = send(cache_control="no-cache")
    await settle()
    assert bench.metrics.limits["app"].in_flight == 1
    await leave(client)
    await settle()
    assert bench.metrics.limits["app"].in_flight == 0


# -- answers that are for one client ------------------------------------------------------------------


async def test_private_answers_do_not_queue_for_long() -> None:
    """Each client gets its own; once it is known that nothing is shared, nobody waits for anybody."""
    bench = Bench()
    count = 0

    async def own(_: Exchange) -> Response:
        nonlocal count
        count += 1
        mine = b"%d" % count
        await bench.clock.sleep(1)
        return Response(200, list(lines(cache_control="private")), mine)

    bench.script = [own]
    send = bench.route(**HOUR)
    responses = await crowd(bench, send, 10)
    assert sorted([int(await content(response)) for response in responses]) == list(range(1, 11))
    assert bench.clock.now() == 1002.0
    await crowd(bench, send, 10)
    assert bench.clock.now() == 1003.0


async def test_a_length_over_the_bound_is_nobodys_to_wait_for() -> None:
    """An answer that says it is too large goes to its client directly, and the others do not queue."""
    calls = 0

    async def large(_: Exchange) -> Response:
        nonlocal calls
        calls += 1
        await bench.clock.sleep(1)
        body = Stream(None, 200 * 1024)
        body.feed(bytes(200 * 1024))
        body.finish()
        return Response(200, [], body)

    bench = Bench(large)
    responses = await crowd(bench, bench.route(cache={"ttl": "1h", "max_object": "128KiB"}), 10)
    assert [len(await content(response)) for response in responses] == [200 * 1024] * 10
    assert calls == 10
    assert bench.clock.now() == 1002.0  # one after the head of the first was known, the rest together


async def test_hit_for_miss_ends_when_an_answer_is_shared() -> None:
    """The first answer that may be stored ends it: the URL is cached and coalesced again."""
    bench = Bench(ok(b"mine", cache_control="private"), ok(b"ours", cache_control="max-age=10"))
    send = bench.route(cache={})
    await send()
    await send()
    assert (await send()).body == b"ours"
    await bench.clock.advance(10)
    bench.script.append(slow(ok(b"new", cache_control="max-age=10"), bench))
    responses = await crowd(bench, send, 5)
    assert [response.body for response in responses] == [b"new"] * 5
    assert len(bench.calls) == 3


async def test_hit_for_miss_ends_by_itself() -> None:
    """After a minute one request finds out again for all."""
    bench = Bench()
    bench.script = [ok(b"mine", cache_control="private"), slow(ok(b"ours"), bench)]
    send = bench.route(**HOUR)
    await send()
    await bench.clock.advance(60)
    responses = await crowd(bench, send, 5)
    assert [response.body for response in responses] == [b"ours"] * 5
    assert len(bench.calls) == 2


async def test_credentials_do_not_share_a_fill() -> None:
    """Requests with different `Authorization` wait for different fills, even where answers are shared."""
    bench = Bench()
    bench.script = [slow(ok(b"x"), bench)]
    send = bench.route(cache={"ttl": "1h", "share_authorized": True})
    tasks = [send(authorization=f"Bearer {who}") for who in "abab"] + [send(), send()]
    await bench.clock.complete(asyncio.gather(*tasks))
    assert len(bench.calls) == 3
    sent = sorted(exchange.request.header(b"authorization") or b"" for exchange in bench.seen)
    assert sent == [b"", b"Bearer a", b"Bearer b"]


async def test_a_credential_does_not_end_the_sharing_of_others() -> None:
    """An answer that was not stored for its `Authorization` says nothing of requests without one."""
    bench = Bench()
    bench.script = [slow(ok(b"x"), bench)]
    send = bench.route(**HOUR)
    await bench.clock.complete(send(authorization="Bearer a"))
    await crowd(bench, send, 20)
    assert len(bench.calls) == 2


async def test_variants_wait_for_their_own() -> None:
    """Who finds that the fill was for another variant waits for one of its own: a call for each variant."""
    bench = Bench()

    async def varied(exchange: Exchange) -> Response:
        await bench.clock.sleep(1)
        kind = exchange.request.header(b"x-kind") or b""
        return Response(200, list(lines(vary="X-Kind")), kind)

    bench.script = [varied]
    send = bench.route(**HOUR)
    tasks = [send(x_kind=str(number % 8)) for number in range(80)]
    responses = await bench.clock.complete(asyncio.gather(*tasks))
    assert [response.body for response in responses] == [b"%d" % (number % 8) for number in range(80)]
    assert len(bench.calls) == 8


async def test_variants_do_not_queue_behind_a_streaming_one() -> None:
    """While one variant streams, those who want another share a call of their own."""
    bodies = [Stream(None), Stream(None)]
    bench = Bench(*[stream(body, vary="X-Kind") for body in bodies])
    send = bench.route(**HOUR)
    await send(x_kind="a")
    waiting = [send(x_kind="b") for _ in range(10)]
    await settle()
    assert all(task.done() for task in waiting)
    assert len(bench.calls) == 2


# -- purges -----------------------------------------------------------------------------------------


async def test_a_purge_during_the_fill_keeps_it_out() -> None:
    """What was asked for before its purge is not stored after it."""
    bench = Bench()
    bench.script = [slow(ok(b"old"), bench), ok(b"new")]
    send = bench.route(**HOUR)
    getting = send()
    await settle()
    await bench.caching.store.purge_prefix(b"all:")
    await bench.clock.advance(0.5)
    response = await bench.clock.complete(getting)
    assert (response.body, shown(response, "cache-status")) == (
        b"old",
        "sidecar; fwd=uri-miss; fwd-status=200",
    )
    assert (await send()).body == b"new"


def unrouted(_: Exchange) -> Handler:
    raise AssertionError("a purge sends no request")


@pytest.mark.parametrize("named", [
    {"tag": "jobs"}, {"namespace": "all"}, {"prefix": "all:v1:test:"}, {"url": "http://test/"},
])  # fmt: skip
async def test_nobody_joins_what_was_purged_since(named: dict[str, str]) -> None:
    """A request after a purge does not wait for what was asked for before it."""
    bench = Bench()
    bench.script = [slow(ok(b"old"), bench, 2), slow(ok(b"new"), bench)]
    send = bench.route(cache={"ttl": "1h", "tags": ["jobs"]})
    control = Control(bench.caching, unrouted, Ids(), "test")
    before = send()
    await settle()
    await control.purge(**named)
    after = send()
    responses = await bench.clock.complete(asyncio.gather(before, after))
    assert [response.body for response in responses] == [b"old", b"new"]
    assert (await send()).body == b"new"


async def test_nobody_joins_what_was_changed_since() -> None:
    """A request that comes after a change does not get the answer that was asked for before it."""
    bench = Bench()
    bench.script = [slow(ok(b"old"), bench, 2), ok(b"", 204), slow(ok(b"new"), bench)]
    send = bench.route(**HOUR)
    before = send()
    await settle()
    await send("PUT")
    after = send()
    responses = await bench.clock.complete(asyncio.gather(before, after))
    assert [response.body for response in responses] == [b"old", b"new"]
    assert (await send()).body == b"new"


async def test_closing_ends_all_fills() -> None:
    """At shutdown no fill is left behind."""
    bench = Bench(hang())
    send = bench.route(**HOUR)
    waiting = send()
    await settle()
    await bench.caching.close()
    results = await asyncio.gather(waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError | SidecarError | Response)
    assert len(bench.caching.fills) == 0

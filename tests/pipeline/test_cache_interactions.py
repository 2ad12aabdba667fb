"""How the cache acts on the layers below it: settings, outcomes, and what must follow."""

from __future__ import annotations

import asyncio
from typing import Any

from sidecar.errors import ConnectionReset
from sidecar.exchange import End, Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, content, fail, hang, ok, shown, stream

BREAKER: dict[str, Any] = {"consecutive": 2, "open_for": "100s", "half_open_probes": 1}
QUICK: dict[str, Any] = {"strategy": "fixed", "base": "100ms", "max": "100ms"}
STALE: dict[str, Any] = {"ttl": "10s", "stale_if_error": "1h"}


def breaker_state(bench: Bench) -> str:
    return bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value


async def test_stale_while_the_breaker_is_open() -> None:
    """Breaker open and an entry inside `stale_if_error`: 200, stale, marked, the upstream not called."""
    bench = Bench(ok(b"one"), fail(ConnectionReset()))
    send = bench.route(cache=STALE, circuit_breaker=BREAKER, retry={"attempts": 3, "backoff": QUICK})
    await send()
    opener = bench.route("opener", circuit_breaker=BREAKER)
    for _ in range(2):
        await opener(target=b"/other")
    assert breaker_state(bench) == "open"
    await bench.clock.advance(11)
    bench.calls.clear()
    response = await send()
    assert (response.status, response.body) == (200, b"one")
    assert shown(response, "sidecar-degraded") == "stale"
    assert (bench.calls, bench.clock.slept) == ([], [])
    assert bench.sent[-1].breaker == "open"


async def test_a_hit_asks_neither_breaker_nor_limiter() -> None:
    """What is fresh is served whatever the upstream's state."""
    bench = Bench(ok(b"one"), hang())
    send = bench.route(cache=STALE, circuit_breaker=BREAKER, concurrency_limit={"max": 1})
    await send()
    holder = bench.route("holder", concurrency_limit={"max": 1})()
    await settle()
    assert (await send()).body == b"one"
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)


async def test_a_full_limiter_gives_the_stale_answer() -> None:
    """Our own rejection is an error that a stale answer may stand in for."""
    bench = Bench(ok(b"one"), hang())
    send = bench.route(cache=STALE, concurrency_limit={"max": 1})
    await send()
    await bench.clock.advance(11)
    holder = bench.route("holder", concurrency_limit={"max": 1})()
    await settle()
    assert (await send()).body == b"one"
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)


async def test_the_first_client_leaves_and_the_rest_get_the_body() -> None:
    """100 concurrent misses make one call; the first client leaves; 99 get the body."""
    bench = Bench()

    async def later(_: Exchange) -> Response:
        await bench.clock.sleep(1)
        return Response(200, [], b"one")

    bench.script = [later]
    send = bench.route(cache=STALE, deadline="5s", concurrency_limit={"max": 1})
    first, *rest = [send() for _ in range(100)]
    await settle()
    first.cancel()
    responses = await bench.clock.complete(asyncio.gather(*rest))
    assert first.cancelled()
    assert [response.body for response in responses] == [b"one"] * 99
    assert len(bench.calls) == 1
    assert bench.metrics.limits["app"].in_flight == 0


async def test_all_who_wait_get_the_same_error_once() -> None:
    """A fill that fails is retried once for all; then all get its error, and none retries alone."""
    bench = Bench(fail(ConnectionReset()))
    send = bench.route(cache=STALE, retry={"attempts": 2, "backoff": QUICK})
    responses = await bench.clock.complete(asyncio.gather(*[send() for _ in range(50)]))
    assert {(response.status, response.header(b"sidecar-error")) for response in responses} == {
        (502, b"upstream_reset")
    }
    assert len(bench.calls) == 2
    assert bench.clock.slept == [0.1]


async def test_a_fill_is_retried_once_for_all() -> None:
    """The second attempt's answer goes to all who wait, and to the store."""
    body = Stream(None)
    bench = Bench(stream(body, 503), ok(b"one"))
    send = bench.route(cache=STALE, retry={"attempts": 3, "backoff": QUICK})
    responses = await bench.clock.complete(asyncio.gather(*[send() for _ in range(50)]))
    assert [response.body for response in responses] == [b"one"] * 50
    assert len(bench.calls) == 2
    assert body.end is End.DROPPED
    assert (await send()).body == b"one"


async def test_retries_come_before_the_stale_answer() -> None:
    """The stale answer stands in only once the retries are through."""
    bench = Bench(ok(b"one"), ok(b"", 503), ok(b"two"))
    send = bench.route(cache=STALE, retry={"attempts": 2, "backoff": QUICK})
    await send()
    await bench.clock.advance(11)
    assert (await bench.clock.complete(send())).body == b"two"


async def test_a_fill_has_its_own_deadline() -> None:
    """A fill's deadline counts from its start: a client who joins late does not lengthen it."""
    bench = Bench(hang())
    send = bench.route(cache=STALE, deadline="2s")
    first = send()
    await bench.clock.advance(1.5)
    second = send()
    await bench.clock.advance(0.6)
    assert ((await first).status, (await second).status) == (504, 504)
    assert len(bench.calls) == 1


async def test_a_background_fill_has_its_own_deadline() -> None:
    """The first stale hit while revalidating returns at once; one fill runs, up to its own deadline."""
    bench = Bench(ok(b"one"), hang())
    send = bench.route(cache={"ttl": "10s", "stale_while_revalidate": "1m"}, deadline="2s")
    await send()
    await bench.clock.advance(11)
    at = bench.clock.now()
    responses = [await send() for _ in range(5)]
    assert bench.clock.now() == at
    assert [response.body for response in responses] == [b"one"] * 5
    await settle()
    assert len(bench.calls) == 2
    assert bench.seen[1].deadline == at + 2
    await bench.clock.advance(2.1)
    assert len(bench.caching.fills) == 0


async def test_the_slot_is_held_until_the_fill_is_through() -> None:
    """The limiter's slot belongs to the fill: clients that leave do not free it, the body's end does."""
    body = Stream(None)
    bench = Bench(stream(body))
    send = bench.route(cache=STALE, concurrency_limit={"max": 1})
    response = await send()
    response.close()
    await settle()
    assert bench.metrics.limits["app"].in_flight == 1
    body.feed(b"one")
    body.finish()
    await settle()
    assert bench.metrics.limits["app"].in_flight == 0
    assert (await send()).body == b"one"


async def test_a_private_body_frees_its_slot_when_its_client_leaves() -> None:
    """What is for one client ends with it."""
    body = Stream(None)
    bench = Bench(stream(body, cache_control="private"))
    send = bench.route(cache=STALE, concurrency_limit={"max": 1})
    response = await send()
    assert bench.metrics.limits["app"].in_flight == 1
    response.close()
    assert bench.metrics.limits["app"].in_flight == 0


async def test_a_broken_fill_counts_in_the_breaker() -> None:
    """A body that breaks off while it is shared is one failure of the upstream."""
    body = Stream(None)
    bench = Bench(stream(body))
    send = bench.route(cache=STALE, circuit_breaker={**BREAKER, "consecutive": 1})
    responses = [await send(), await send()]
    body.fail(ConnectionReset())
    failures = await asyncio.gather(*[content(each) for each in responses], return_exceptions=True)
    assert [type(failure) for failure in failures] == [ConnectionReset, ConnectionReset]
    assert breaker_state(bench) == "open"


async def test_the_trail_of_a_fill_is_its_first_clients() -> None:
    """Attempts and notes of a fill show in the trail of the request that started it, and only there."""
    bench = Bench(fail(ConnectionReset()), ok(b"one"))
    send = bench.route(cache=STALE, retry={"attempts": 2, "backoff": QUICK})
    await bench.clock.complete(asyncio.gather(send(), send()))
    first, second = bench.sent
    failed = [("upstream", "error=upstream_reset"), ("classify", "transient")]
    assert (first.attempts, first.note_list) == (2, [*failed, ("retry", "reset")])
    assert (second.attempts, second.note_list) == (0, None)

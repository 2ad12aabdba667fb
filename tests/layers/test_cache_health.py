"""Staleness by health: short while the origin is well, long and at once while it is not."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.verdict import Verdict
from sidecar.errors import AttemptTimeout, CircuitOpen, ConnectFailed, ConnectionReset, LimitExceeded
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, Send, fail, hang, ok, shown, stated

CACHE: dict[str, Any] = {
    "ttl": "10s",
    "stale_while_revalidate": "5s",
    "stale_if_error": "1h",
    "probe_interval": "5s",
}
SLOW: dict[str, Any] = {
    "deadline": "8s",
    "attempt_timeout": "3s",
    "retry": {"attempts": 2, "backoff": {"strategy": "fixed", "base": "1s", "max": "1s"}},
}
KEYS = [b"/%d" % number for number in range(5)]


async def warm(bench: Bench, **settings: Any) -> Send:
    """A sender of GETs whose keys are all stored, and stale for longer than a healthy origin bears."""
    send = bench.route(**{"cache": CACHE, **settings})
    script, bench.script = bench.script, [ok(b"old")]
    for key in KEYS:
        await send(target=key)
    await bench.clock.advance(16)
    bench.script, bench.calls[:] = script, []
    return send


async def at_once(bench: Bench, send: Send, key: bytes = KEYS[0]) -> str | None:
    """Asks for a stale key and gets it without any time passing; what Cache-Status says."""
    before = bench.clock.now()
    response = await send(target=key)
    assert bench.clock.now() == before
    assert (response.status, response.body) == (200, b"old")
    assert shown(response, "sidecar-degraded") == "stale"
    return shown(response, "cache-status")


async def test_while_it_is_well_nobody_gets_what_is_too_old() -> None:
    """Past `stale_while_revalidate` the origin is asked first, and its answer is what the client gets."""
    bench = Bench(ok(b"new"))
    send = await warm(bench)
    response = await send(target=KEYS[0])
    assert (response.body, shown(response, "sidecar-degraded")) == (b"new", None)


@pytest.mark.parametrize("outcome", [hang(), fail(ConnectionReset()), ok(b"", 503)])
async def test_the_second_request_waits_for_nothing(outcome: Outcome) -> None:
    """Once a key's fill has failed, after attempts and back-off, the next ones are answered at once."""
    bench = Bench(outcome)
    send = await warm(bench, **SLOW)
    first = await bench.clock.complete(send(target=KEYS[0]))
    assert (first.body, shown(first, "sidecar-degraded")) == (b"old", "stale")
    assert bench.clock.now() > 1016.5
    for _ in range(3):
        left = int(1010 - bench.clock.now())
        assert await at_once(bench, send) == f'sidecar; hit; ttl={left}; detail="stale-if-error"'
    assert len(bench.calls) == 2
    assert bench.outcomes[-3:] == ["stale"] * 3
    assert bench.metrics.route("all", "app").fallbacks == {"stale": 4}


async def test_a_refused_connection_tells_for_all_keys() -> None:
    """Nothing listens there: every other warm key is answered at once, with one call in all."""
    bench = Bench(fail(ConnectFailed()))
    send = await warm(bench)
    await send(target=KEYS[0])
    for key in KEYS:
        await at_once(bench, send, key)
    assert len(bench.calls) == 1


async def test_an_open_breaker_tells_for_all_keys() -> None:
    """It has seen enough: its probes run in the background, and keep no client waiting."""
    bench = Bench(fail(ConnectionReset()))
    breaker = {"consecutive": 1, "open_for": "3s", "half_open_probes": 1}
    send = await warm(bench, circuit_breaker=breaker)
    await send(target=KEYS[0])
    await send(target=KEYS[1])
    assert len(bench.calls) == 1
    await bench.clock.advance(6)
    bench.script = [hang()]
    for key in KEYS:
        await at_once(bench, send, key)
    await settle()
    assert len(bench.calls) == 2
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "half_open"


async def test_slow_failures_tell_after_a_few() -> None:
    """Three in a row, whatever the key."""
    bench = Bench(fail(AttemptTimeout()))
    send = await warm(bench)
    for key in KEYS[:3]:
        await send(target=key)
    assert len(bench.calls) == 3
    for key in KEYS:
        await at_once(bench, send, key)
    assert len(bench.calls) == 3


async def test_one_url_that_fails_says_nothing_of_the_others() -> None:
    """While others succeed, only its own stale answer is served at once."""
    bench = Bench(fail(AttemptTimeout()))
    send = await warm(bench)
    await send(target=KEYS[0])
    for _ in range(4):
        bench.script = [ok(b"new")]
        for key in KEYS[1:]:
            response = await send(target=key)
            assert (response.body, shown(response, "sidecar-degraded")) == (b"new", None)
        bench.script = [fail(AttemptTimeout())]
        await at_once(bench, send)
        await settle()
        await bench.clock.advance(16)


async def test_our_own_limit_says_nothing_of_the_origin() -> None:
    """A full limiter is ours: other keys ask as ever."""
    bench = Bench(fail(LimitExceeded()))
    send = await warm(bench)
    for key in KEYS:
        await send(target=key)
    assert len(bench.calls) == len(KEYS)


async def test_one_probe_in_the_background() -> None:
    """After an interval one request asks, whoever comes first; all are answered at once meanwhile."""
    bench = Bench(fail(ConnectFailed()), hang())
    send = await warm(bench)
    await send(target=KEYS[0])
    await bench.clock.advance(4.9)
    await at_once(bench, send)
    await settle()
    assert len(bench.calls) == 1
    await bench.clock.advance(0.1)
    for key in KEYS * 3:
        await at_once(bench, send, key)
    await settle()
    assert len(bench.calls) == 2


async def test_it_is_back_within_one_interval() -> None:
    """The first probe that succeeds is the end of it: all keys are asked for again, and fresh."""
    bench = Bench(fail(ConnectFailed()))
    send = await warm(bench)
    for _ in range(30):
        await send(target=KEYS[0])
        await bench.clock.advance(1)
    probes = len(bench.calls)
    assert probes <= 7
    bench.script = [ok(b"new")]
    await bench.clock.advance(4.9)
    await at_once(bench, send)  # the probe
    await settle()
    assert len(bench.calls) == probes + 1
    for key in KEYS:
        response = await send(target=key)
        assert (response.body, shown(response, "sidecar-degraded")) == (b"new", None)


async def test_a_miss_that_succeeds_is_as_good_as_a_probe() -> None:
    """Cold keys ask the origin all the time: the first answer tells for all."""
    bench = Bench(fail(ConnectFailed()))
    send = await warm(bench)
    await send(target=KEYS[0])
    await at_once(bench, send, KEYS[1])
    bench.script = [ok(b"new")]
    assert (await send(target=b"/cold")).body == b"new"
    assert (await send(target=KEYS[1])).body == b"new"


async def test_a_refresh_is_not_repeated_with_every_request() -> None:
    """Within `stale_while_revalidate` too: while the origin fails it is asked once an interval."""
    bench = Bench(ok(b"old"), fail(ConnectFailed()))
    send = bench.route(cache={**CACHE, "stale_while_revalidate": "1m"})
    await send()
    await bench.clock.advance(11)
    for _ in range(50):
        response = await send()
        assert (response.body, shown(response, "sidecar-degraded")) == (b"old", None)
        await bench.clock.advance(0.5)
    assert len(bench.calls) <= 1 + 6


async def test_past_stale_if_error_the_origin_is_asked() -> None:
    """What may not stand in for an error is not served at once either."""
    bench = Bench(fail(ConnectFailed()))
    send = await warm(bench, cache={**CACHE, "stale_if_error": "1m"})
    await send(target=KEYS[0])
    await bench.clock.advance(60)
    response = await send(target=KEYS[0])
    assert response.status == 502


@pytest.mark.parametrize("directive", ["must-revalidate", "proxy-revalidate", "s-maxage=10", "no-cache"])
async def test_what_must_be_validated_is_not_served(directive: str) -> None:
    """The origin's word goes before the policy's (RFC 9111, 4.2.4)."""
    bench = Bench(ok(b"old", cache_control=f"max-age=10, {directive}", etag='"1"'), fail(ConnectFailed()))
    send = bench.route(cache={"stale_if_error": "1h"})
    await send()
    await bench.clock.advance(16)
    for _ in range(3):
        assert (await send()).status == 502
    assert len(bench.calls) == 4


async def test_the_origins_own_word_is_enough() -> None:
    """`stale-if-error` of the answer, without any of the policy (RFC 5861, 4)."""
    bench = Bench(ok(b"old", cache_control="max-age=10, stale-if-error=60"), fail(ConnectFailed()))
    send = bench.route(cache={})
    await send()
    await bench.clock.advance(16)
    await send()
    await at_once(bench, send, b"/")
    assert len(bench.calls) == 2


async def test_without_a_word_on_errors_the_origin_is_asked() -> None:
    """A disconnected origin lets a stale answer stand in, once it was asked."""
    bench = Bench(ok(b"old"), fail(ConnectFailed()))
    send = bench.route(cache={"ttl": "10s"})
    await send()
    await bench.clock.advance(16)
    for calls in (2, 3):
        assert (await send()).body == b"old"
        assert len(bench.calls) == calls


@pytest.mark.parametrize("wanted", ["no-cache", "max-age=5", "min-fresh=1"])
async def test_a_client_that_asks_for_more_waits_for_it(wanted: str) -> None:
    """It gets what it asks for when the origin is back, without waiting for a probe."""
    bench = Bench(fail(ConnectFailed()))
    send = await warm(bench)
    await send(target=KEYS[0])
    bench.script = [ok(b"new")]
    assert (await send(target=KEYS[0], cache_control=wanted)).body == b"new"


async def test_off_asks_first_each_time() -> None:
    """As before: each request waits for its own attempt."""
    bench = Bench(fail(ConnectFailed()))
    send = await warm(bench, cache={**CACHE, "probe_interval": "off"})
    for calls in range(1, 6):
        assert (await send(target=KEYS[0])).body == b"old"
        assert len(bench.calls) == calls


async def test_health_is_not_remembered_for_ever() -> None:
    """Long after the last failure, with nobody asking meanwhile, the origin has another chance."""
    bench = Bench(fail(ConnectFailed()))
    send = await warm(bench)
    await send(target=KEYS[0])
    bench.script = [ok(b"new")]
    await bench.clock.advance(50)
    assert (await send(target=KEYS[0])).body == b"new"


async def test_each_route_has_its_own_health() -> None:
    """A breaker of one route's own, open, makes no other route's answers stale."""
    bench = Bench(fail(CircuitOpen()))
    send = await warm(bench)
    other = bench.route("other", cache=CACHE)
    bench.script = [ok(b"old")]
    await other(target=b"/other")
    await bench.clock.advance(16)
    bench.script = [fail(CircuitOpen())]
    await send(target=KEYS[0])
    bench.script = [ok(b"new")]
    assert (await other(target=b"/other")).body == b"new"


async def test_a_stored_error_stands_in_for_none() -> None:
    """An origin may have its error kept: past its time it is no better than the next one."""
    busy = stated(b"busy", Verdict.TRANSIENT, cache_control="max-age=10, stale-if-error=60")
    bench = Bench(busy, fail(ConnectFailed()))
    send = bench.cache_alone()
    assert (await send()).body == b"busy"
    await bench.clock.advance(11)
    for _ in range(2):
        with pytest.raises(ConnectFailed):
            await send()
    assert len(bench.calls) == 3

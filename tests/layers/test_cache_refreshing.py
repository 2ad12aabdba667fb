"""How long the cache layer trusts what it stored, and when it looks again ahead of time."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.exchange import Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, content, lines, ok, shown

ADAPTIVE: dict[str, Any] = {"cache": {"ttl": "1m", "adaptive_ttl": {"min": "30s", "max": "4m"}}}


async def seen_fresh_for(bench: Bench) -> int:
    """Seconds of freshness that the last answer is given."""
    send = bench.route(**ADAPTIVE)
    return int((shown(await send(cache_control="max-stale"), "cache-status") or "").rpartition("=")[2])


@pytest.mark.parametrize("how", ["304", "same bytes", "same stream"])
async def test_adaptive_ttl_grows(how: str) -> None:
    """Each look that finds the same doubles the trust, up to `max`."""

    async def same(_: Exchange) -> Response:
        if how == "304" and bench.calls[1:]:
            return Response(304, list(lines(etag='"1"')))
        if how == "same stream":
            body = Stream(None)
            body.feed(b"one")
            body.finish()
            return Response(200, [], body)
        return Response(200, list(lines(etag='"1"')) if how == "304" else [], b"one")

    bench = Bench(same)
    send = bench.route(**ADAPTIVE)
    await content(await send())
    for ttl in (60, 120, 240, 240):
        await settle()
        assert await seen_fresh_for(bench) == ttl
        await bench.clock.advance(ttl)
        await content(await send())


async def test_adaptive_ttl_shrinks() -> None:
    """Each look that finds something new halves the trust, down to `min`."""
    bench = Bench(ok(b"1"), ok(b"2"), ok(b"3"), ok(b"4"))
    send = bench.route(**ADAPTIVE)
    await send()
    for ttl in (60, 30, 30):
        assert await seen_fresh_for(bench) == ttl
        await bench.clock.advance(ttl)
        await send()


async def test_refresh_ahead() -> None:
    """Past that share of its freshness, a hit starts one background fill; before it, none."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(cache={"ttl": "100s", "refresh_ahead": "80%"})
    await send()
    await bench.clock.advance(79)
    await send()
    await settle()
    assert len(bench.calls) == 1
    await bench.clock.advance(1)
    waiting = [send() for _ in range(5)]
    assert [(await task).body for task in waiting] == [b"one"] * 5
    await settle()
    assert len(bench.calls) == 2
    assert shown(await send(), "cache-status") == "sidecar; hit; ttl=100"
    assert set(bench.outcomes[1:]) == {"hit"}

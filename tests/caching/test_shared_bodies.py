"""One streaming body for many: who joins, who is slow, who leaves, how it breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.errors import BodyBroken
from sidecar.exchange import End, Stream
from tests.support.clock import settle
from tests.support.script import Bench, content, ok, stream

HOUR: dict[str, Any] = {"cache": {"ttl": "1h"}}


async def test_latecomers_get_the_body_from_its_start() -> None:
    """Who comes while the body streams gets all of it, byte for byte, from the one call."""
    body = Stream(None)
    bench = Bench(stream(body))
    send = bench.route(**HOUR)
    first = await send()
    reading = [asyncio.ensure_future(content(first))]
    pieces = [bytes([number]) * 1000 for number in range(50)]
    for number, piece in enumerate(pieces):
        body.feed(piece)
        await settle()
        if number % 10 == 5:
            reading.append(asyncio.ensure_future(content(await send())))
    body.finish()
    assert await asyncio.gather(*reading) == [b"".join(pieces)] * 6
    assert (await send()).body == b"".join(pieces)
    assert len(bench.calls) == 1
    assert bench.outcomes == ["miss", *["collapsed"] * 5, "hit"]


async def test_the_first_leaves_within_the_body() -> None:
    """The client whose request it was closes its body: the others get theirs, and it is stored."""
    body = Stream(None)
    bench = Bench(stream(body))
    send = bench.route(**HOUR)
    first, second = await send(), await send()
    body.feed(b"ab")
    await settle()
    first.close()
    body.feed(b"cd")
    body.finish()
    assert await content(second) == b"abcd"
    assert (await send()).body == b"abcd"
    assert len(bench.calls) == 1


async def test_a_broken_body_fails_for_all() -> None:
    """Every consumer sees the break; nothing is stored."""
    body = Stream(None)
    bench = Bench(stream(body, cache_control="max-age=60"), ok(b"whole"))
    send = bench.route(**HOUR)
    first, second = await send(), await send()
    body.feed(b"ab")
    body.fail(BodyBroken())
    for response in (first, second):
        assert isinstance(response.body, Stream)
        assert await response.body.read() == b"ab"
        with pytest.raises(BodyBroken):
            await response.body.read()
    assert (await send()).body == b"whole"


class Tap:
    """The upstream's side of a body."""

    def __init__(self) -> None:
        self.paused = False
        self.abandoned = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def abandon(self) -> None:
        self.abandoned = True


PIECE = bytes(64 * 1024)
SMALL: dict[str, Any] = {"cache": {"ttl": "1h", "max_object": "128KiB"}}


async def test_a_slow_consumer_slows_the_upstream() -> None:
    """Past `max_object` nothing is kept: a consumer that does not read pauses the upstream."""
    tap = Tap()
    body = Stream(tap)
    bench = Bench(stream(body))
    response = await bench.route(**SMALL)()
    assert isinstance(response.body, Stream)
    for _ in range(12):
        body.feed(PIECE)
        await settle()
    assert tap.paused
    assert response.body.buffered <= 5 * len(PIECE)
    reading = asyncio.ensure_future(content(response))
    await settle()
    assert not tap.paused
    body.finish()
    assert len(await reading) == 12 * len(PIECE)


async def test_the_slowest_sets_the_pace_and_may_leave() -> None:
    """Of two consumers the one that does not read holds the other up, until it leaves."""
    tap = Tap()
    body = Stream(tap)
    bench = Bench(stream(body))
    send = bench.route(**SMALL)
    fast, stuck = await send(), await send()
    reading = asyncio.ensure_future(content(fast))
    for _ in range(12):
        body.feed(PIECE)
        await settle()
    assert tap.paused
    stuck.close()
    await settle()
    assert not tap.paused
    body.finish()
    assert len(await reading) == 12 * len(PIECE)


async def test_too_large_an_answer_passes() -> None:
    """What turns out larger than `max_object` is passed on whole and not stored."""
    bodies = [Stream(None), Stream(None)]
    bench = Bench(*[stream(body) for body in bodies])
    send = bench.route(**SMALL)
    for number in range(2):
        response = await send()
        reading = asyncio.ensure_future(content(response))
        for _ in range(4):
            bodies[number].feed(PIECE)
            await settle()
        bodies[number].finish()
        assert len(await reading) == 4 * len(PIECE)
    assert len(bench.calls) == 2
    assert bench.outcomes == ["miss", "miss"]


async def test_all_of_a_large_body_that_came_at_once() -> None:
    """A body that is there before anybody reads, and larger than what is kept, is passed on whole."""
    body = Stream(None)
    for letter in (b"a", b"b", b"c"):
        body.feed(letter * 60)
    body.finish()
    bench = Bench(stream(body))
    response = await bench.route(cache={"ttl": "1h", "max_object": "100B"})()
    assert await content(response) == b"a" * 60 + b"b" * 60 + b"c" * 60


async def test_a_large_body_that_nobody_reads_is_given_up_at_once() -> None:
    """When its last consumer leaves, an answer that will not be stored is closed without waiting for more."""
    tap = Tap()
    body = Stream(tap)
    bench = Bench(stream(body))
    response = await bench.route(**SMALL, concurrency_limit={"max": 1})()
    reading = asyncio.ensure_future(content(response))
    for _ in range(4):
        body.feed(PIECE)
        await settle()
    reading.cancel()
    response.close()
    await settle()
    assert (body.end, tap.abandoned) == (End.DROPPED, True)
    assert bench.metrics.limits["app"].in_flight == 0


async def test_events_are_not_held_for_others() -> None:
    """An event stream belongs to the client that opened it, and ends with it."""
    tap = Tap()
    body = Stream(tap)
    bench = Bench(stream(body, content_type="text/event-stream"))
    send = bench.route(**HOUR)
    response = await send()
    body.feed(b"data: 1\n\n")
    await settle()
    assert response.body is body
    response.close()
    assert tap.abandoned

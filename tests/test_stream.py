"""A body in flight: who is paused, and when it goes on."""

from __future__ import annotations

import asyncio

from sidecar.exchange import HIGH_WATER, Stream


class Producer:
    """A source that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def abandon(self) -> None:
        self.told.append("abandon")


async def test_a_producer_far_ahead_is_paused() -> None:
    """And goes on once little is left."""
    producer = Producer()
    stream = Stream(producer)
    stream.feed(b"x" * HIGH_WATER)
    stream.feed(b"x")
    assert producer.told == ["pause"]
    await stream.read()
    assert producer.told == ["pause", "resume"]


async def test_a_consumer_that_is_stuck_holds_the_producer() -> None:
    """At once, however little is here; it goes on when the consumer asks for more than there is."""
    producer = Producer()
    stream = Stream(producer)
    stream.feed(b"first")
    assert await stream.read() == b"first"
    stream.hold()
    stream.hold()
    assert producer.told == ["pause"]
    reading = asyncio.ensure_future(stream.read())
    await asyncio.sleep(0)
    assert producer.told == ["pause", "resume"]
    stream.feed(b"second")
    assert await reading == b"second"
    assert producer.told == ["pause", "resume"]


async def test_a_held_producer_that_was_ahead_goes_on_with_the_next_read() -> None:
    """What is here is given first, and the pause ends with it."""
    producer = Producer()
    stream = Stream(producer)
    stream.feed(b"first")
    stream.hold()
    assert await stream.read() == b"first"
    assert producer.told == ["pause", "resume"]
    stream.finish()
    stream.hold()
    assert await stream.read() == b""
    assert producer.told == ["pause", "resume"]

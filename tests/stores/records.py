"""Records for tests of the stores, and waiting for what happens in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sidecar.decisions.freshness import Lifetime
from sidecar.headers import Line
from sidecar.stores.entry import Entry, Record, Variants

MIB = 1024 * 1024


def lifetime(kept: float = 60.0, now: float | None = None) -> Lifetime:
    """Of a response that came now: fresh for ten seconds, kept for `kept`."""
    born = time.time() if now is None else now
    fresh = min(born + 10, born + kept)
    return Lifetime(born, fresh, fresh, fresh, fresh, born + kept, born)


def entry(
    body: bytes = b"a body", *, kept: float = 60.0, tags: tuple[str, ...] = (), now: float | None = None
) -> Entry:
    headers = [Line(b"Content-Type", b"application/json"), Line(b"eTaG", b'"1"'), Line(b"X-Two", b"a: b")]
    return Entry(200, b"OK", headers, body, lifetime(kept, now), tags=tags)


def variants(*keys: bytes, kept: float = 60.0) -> Variants:
    return Variants([(b"accept",)], list(keys), time.time() + kept)


def same(one: Record | None, other: Record | None) -> bool:
    """Equal in all that a shared store keeps."""
    return described(one) == described(other)


def described(record: Record | None) -> object:
    match record:
        case Entry():
            wires = [line.wire for line in record.headers]
            return (
                (record.status, record.reason, wires, record.body, record.lifetime, record.method),
                (record.tags, record.verdict, record.unchanged),
            )
        case Variants():
            return (record.names, record.keys, record.lifetime_end)
        case None:
            return None


async def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits for what other tasks and processes bring about. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.002)

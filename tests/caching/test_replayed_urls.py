"""The URLs that Nextvision sends to Google, replayed: what the semantic key is worth."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from sidecar.clock import Clock
from sidecar.stores.entry import Record
from sidecar.stores.memory import Memory, Node
from tests.support.script import Bench, ok

SECRET = "AIzaSyFakeKeyForTests"
ADDRESSES = [
    "13 rue du Champ de Mars 75007 Paris",
    "1 place de la Défense 92400 Courbevoie",
    "20 rue de Rivoli 75004 Paris",
    "5 avenue Anatole France 75007 Paris",
    "2 rue de la République 69001 Lyon",
]
JOBS = ADDRESSES[1:3]
MODES = ("driving", "transit")
SEMANTIC: dict[str, Any] = {"query": {"drop": ["key"], "fold": ["address", "origin", "destination"],
                      "bucket": {"departure_time": "5m"}}}  # fmt: skip


def as_typed(text: str, turn: int) -> str:
    """The same address as another user would type it, escaped as another client would."""
    text = (text, text.upper(), text.lower(), text.title())[turn % 4]
    if turn % 3 == 1:
        text = text.replace(" ", "  ")
    if turn % 5 == 2:
        text = f" {text} "
    return (quote_plus if turn % 2 else quote)(text)


def replay(now: float) -> list[bytes]:
    """1,000 URLs as in half an hour's traffic: half of them Directions, each `departure_time` its own."""
    urls = []
    for turn in range(1000):
        if turn % 2:
            origin = as_typed(ADDRESSES[turn // 2 % len(ADDRESSES)], turn // 3)
            goal = as_typed(JOBS[turn // 10 % len(JOBS)], turn // 7)
            departure = int(now) + turn * 18 // 10
            urls.append(
                f"/maps/api/directions/json?origin={origin}&destination={goal}"
                f"&mode={MODES[turn // 20 % 2]}&departure_time={departure}&key={SECRET}"
            )
        else:
            # No user types an address twice in the same way.
            address = as_typed(ADDRESSES[turn // 2 % len(ADDRESSES)], turn // 2)
            spaces = "+" * (turn // 2 + 1)
            urls.append(f"/maps/api/geocode/json?address={address}{spaces}&key={SECRET}")
    return [url.encode() for url in urls]


class Noting(Memory):
    """Remembers all that was ever stored."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(1 << 20, clock)
        self.noted: list[tuple[bytes, Record]] = []

    def set(self, key: bytes, record: Record) -> Node | None:
        self.noted.append((key, record))
        return super().set(key, record)


@pytest.mark.parametrize(("key", "at_least", "below"), [(SEMANTIC, 80.0, 100.0), ({}, 0.0, 5.0)])
async def test_hit_ratio(key: dict[str, Any], at_least: float, below: float) -> None:
    """The semantic key serves at least 80 % of them from the cache; exact URLs less than 5 %."""
    bench = Bench(ok(b"{}"))
    send = bench.route("maps", cache={"ttl": "1h", "key": key})
    urls = replay(bench.clock.wall())
    assert len(set(urls)) == 1000
    for url in urls:
        await send(target=url, host=b"maps.googleapis.com")
        await bench.clock.advance(1.8)
    hits = bench.outcomes.count("hit")
    assert at_least <= 100 * hits / len(urls) < below
    assert hits + len(bench.calls) == 1000


async def test_no_key_holds_the_secret() -> None:
    """Neither the keys in the store nor their tags contain what `key=` carried."""
    bench = Bench(ok(b"{}"))
    noted = bench.caching.store.memory = Noting(bench.clock)
    settings = {"ttl": "1h", "key": SEMANTIC, "methods": ["GET", "POST"]}
    send = bench.route("maps", cache=settings)
    for url in replay(bench.clock.wall())[:100]:
        await send(target=url, host=b"maps.googleapis.com", authorization=f"Bearer {SECRET}")
        await send(target=url, host=b"maps.googleapis.com")
    assert len(noted.noted) > 10
    for key, record in noted.noted:
        assert SECRET.encode() not in key
        assert not any(SECRET in tag for tag in record.tags)

"""Places where a store of batches may be, and lines for it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from sidecar.batch.jobs import Batch, Item, JobStore, Options, Outcome, Result, Status
from sidecar.batch.redis_streams import RedisStreams
from sidecar.batch.sqlite import SqliteStore
from sidecar.clock import SystemClock
from sidecar.stores.redis_url import parse
from tests.support.valkey import Valkey

NOW = 1_700_000_000.0


class Wall:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Place(Protocol):
    @property
    def now(self) -> float: ...
    def make(self) -> JobStore:
        """Another process' store at the same place."""
        ...

    def age(self, seconds: float) -> None:
        """So much time passes, for leases."""
        ...


class FilePlace:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._wall = Wall()

    @property
    def now(self) -> float:
        return self._wall.now

    def make(self) -> JobStore:
        return SqliteStore(self._path, self._wall)

    def age(self, seconds: float) -> None:
        self._wall.now += seconds


class ServerPlace:
    """Leases are measured by the server: time passes by making them older there."""

    def __init__(self, server: Valkey) -> None:
        self._server = server
        self.now = NOW

    def make(self) -> RedisStreams:
        return RedisStreams(parse(self._server.url), SystemClock(), keep=3600)

    def age(self, seconds: float) -> None:
        self.now += seconds
        for key in self._server.stored():
            if not key.endswith(b":workers"):
                continue
            fields = cast("list[bytes]", self._server.ask("HGETALL", key))
            for worker, value in zip(fields[::2], fields[1::2], strict=True):
                until, _, process = value.partition(b" ")
                self._server.ask("HSET", key, worker, b"%.3f %b" % (float(until) - seconds, process))


def items(count: int, *, repeatable: bool = True) -> list[Item]:
    return [Item(number, f"c{number}", b"{}", repeatable) for number in range(1, count + 1)]


def done(*numbers: int, outcome: Outcome = Outcome.OK) -> list[Result]:
    return [Result(number, outcome, b'{"n": %d}' % number) for number in numbers]


async def accepted(store: JobStore, count: int = 3, *, repeatable: bool = True) -> str:
    await store.create(Batch("b", Options(name="n", retries=2), Status.VALIDATING, NOW), "w")
    assert await store.add("b", items(count, repeatable=repeatable)) == []
    await store.accept("b", count)
    return "b"

"""Batches in virtual time: the real runner over the real statements of the store, and a simulated server."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sidecar.batch.calls import Calls
from sidecar.batch.jobs import Batch, Options, Status
from sidecar.batch.lines import parse
from sidecar.batch.runner import Runner
from sidecar.batch.sender import Bounds
from sidecar.batch.sqlite import SqliteStore
from sidecar.batch.stats import Stats
from sidecar.clock import Ids
from sidecar.config.schema import Route
from sidecar.decisions.batch_concurrency import Machine
from sidecar.exchange import Exchange
from sidecar.pipeline import Handler, compile_pipeline
from tests.support.clock import ManualClock, ScriptedRandom
from tests.support.script import Bench, Outcome

T = TypeVar("T")
EASY = Machine(cpu=10.0, cpu_target=85.0, resident=1, memory_target=2, lag=0.0)
RESULTS_AT_ONCE = 10_000


class InlineStore(SqliteStore):
    """The statements run at once, on no thread: in virtual time nothing else would wait for them."""

    db: sqlite3.Connection

    async def open(self) -> None:
        self.db = self._connect()
        self.db.execute("PRAGMA synchronous = OFF")

    async def close(self) -> None:
        self.db.close()

    async def _do(self, function: Callable[[sqlite3.Connection], T], *, alone: bool = False) -> T:
        self.db.execute("BEGIN")
        try:
            value = function(self.db)
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")
        return value


class BatchBench:
    """A runner, a store and one route, `all`, over a scripted upstream."""

    def __init__(
        self,
        folder: Path,
        *outcomes: Outcome,
        clock: ManualClock | None = None,
        worker: str = "w",
        bounds: Bounds | None = None,
        **route: Any,
    ) -> None:
        self.clock = clock or ManualClock()
        self.bench = Bench(*outcomes, clock=self.clock)
        made = Route.model_validate({"name": "all", **route})
        self._handler = compile_pipeline(self.bench._stand(made), self.bench._upstream)
        self.send = self.bench._sender(self._handler)
        self.calls = Calls(self._route, {"all": made}, self.clock, Ids(), "app")
        self.store = InlineStore(folder / "batch.db", self.clock.wall)
        self.stats = Stats()
        self.machine = EASY
        self.runner = Runner(
            self.store,
            self.calls,
            self.clock,
            ScriptedRandom(0.5),
            worker=worker,
            bounds=bounds or Bounds(),
            keep=7 * 86400.0,
            stats=self.stats,
            machine=lambda: self.machine,
            requests=lambda: {
                name: (cells.durations.count, cells.durations.seconds)
                for name, cells in self.bench.metrics.routes.items()
            },
        )

    def _route(self, exchange: Exchange) -> Handler:
        exchange.route = "all"
        return self._handler

    async def start(self) -> None:
        await self.store.open()
        await self.runner.start()

    async def batch(self, lines: Sequence[bytes], name: str = "b", **options: Any) -> str:
        """Accepts a batch and begins to run it."""
        batch = Batch(name, Options(**options), Status.VALIDATING, self.clock.wall())
        await self.store.create(batch, "w")
        items = [parse(number, line, self.calls.repeatable) for number, line in enumerate(lines, 1)]
        await self.store.add(name, items)
        await self.store.accept(name, len(items))
        known = await self.store.batch(name)
        assert known is not None
        self.runner.run(known)
        return name

    async def over(self, name: str = "b", step: float = 0.5, most: float = 600.0) -> float:
        """Moves time until the batch is over; how long it took."""
        began = self.clock.now()
        while self.clock.now() < began + most:
            batch = await self.store.batch(name)
            assert batch is not None
            if batch.finished is not None:
                return batch.finished - batch.created
            await self.clock.advance(step)
        raise AssertionError(f"not over after {most} s: {await self.store.batch(name)}")

    async def results(self, name: str = "b") -> list[bytes]:
        return [text for _, text in await self.store.results(name, 0, RESULTS_AT_ONCE)]

    async def close(self) -> None:
        stopping = asyncio.ensure_future(self.runner.stop(0.0))
        await self.clock.complete(stopping)
        await self.store.close()


def lines(count: int, method: str = "GET") -> list[bytes]:
    text = '{"custom_id": "%d", "method": "%s", "url": "/%d"}'
    return [(text % (number, method, number)).encode() for number in range(count)]

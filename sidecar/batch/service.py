"""Batches, as the admin listener and the start see them: submitting, looking, cancelling, resuming.

The store is opened when there is something in it, or something is to be put in: a sidecar that never runs a
batch has no file for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sidecar.batch.jobs import Batch, Item, JobStore, Options, Status, StoreFailed
from sidecar.batch.lines import BadLine, Splitter, parse, too_long
from sidecar.decisions.batch_concurrency import rating
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.batch.calls import Calls
    from sidecar.batch.runner import Runner
    from sidecar.clock import Clock, Ids
    from sidecar.config.schema import Route

MOST_FAULTS: Final = 100
"""Bad lines that are told of one by one."""
TOGETHER: Final = 500
"""Lines that go to the store at a time."""
TOGETHER_BYTES: Final = 1 << 20
POLL: Final = 0.25
"""Seconds between two looks for results that are not there yet."""
PAGE: Final = 200
REOPEN: Final = 5.0
"""Seconds between two tries to open a store that is there and cannot be opened."""


@dataclass(slots=True)
class Faults:
    """What is wrong with the lines of a file."""

    shown: list[tuple[int, str]] = field(default_factory=list)
    """Number and message of the first `MOST_FAULTS`."""
    count: int = 0

    def add(self, number: int, message: str) -> None:
        self.count += 1
        if len(self.shown) < MOST_FAULTS:
            self.shown.append((number, message))

    def members(self) -> list[dict[str, object]]:
        return [{"line": number, "detail": message} for number, message in sorted(self.shown)]


class BadFile(ValueError):
    """The batch was not accepted: `faults` says why."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(f"{faults.count} bad line{'' if faults.count == 1 else 's'}: nothing was accepted")
        self.faults = faults


class Batches:
    """Everything about batches of one process."""

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        calls: Calls,
        *,
        clock: Clock,
        ids: Ids,
        worker: str,
        defaults: Options,
        exists: Callable[[], bool],
    ) -> None:
        """`exists`: whether there may be batches in the store; `defaults` for what a request leaves open."""
        self.runner = runner
        self.defaults = defaults
        self.trouble = ""
        """Why the store cannot be used; empty while it can, or nobody has tried."""
        self._store = store
        self._calls = calls
        self._clock = clock
        self._ids = ids
        self._worker = worker
        self._exists = exists
        self._opened = False
        self._opening = asyncio.Lock()
        self._retry: asyncio.Task[None] | None = None
        self._log = get_logger("sidecar.batch")

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Resumes what the store holds, in the background where it cannot be opened now."""
        if self._exists():
            self._retry = asyncio.get_running_loop().create_task(self._resume(), name="batch store")

    async def _resume(self) -> None:
        while True:
            try:
                await self.ready()
            except StoreFailed as error:
                self._log.warning("the batch store cannot be opened", reason=str(error))
                await self._clock.sleep(REOPEN)
            else:
                return

    async def ready(self) -> None:
        """Opens the store, once. Raises StoreFailed."""
        async with self._opening:
            if self._opened:
                return
            try:
                await self._store.open()
                await self.runner.start()
            except StoreFailed as error:
                self.trouble = str(error)
                await self._store.close()
                raise
            self._opened = True
            self.trouble = ""

    def follow(self, routes: Mapping[str, Route]) -> None:
        """The configuration has changed: these are its routes, by name."""
        self._calls.follow(routes)

    async def stop(self, patience: float) -> None:
        """As `Runner.stop`, then closes the store."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
        if self._opened:
            await self.runner.stop(patience)
        await self._store.close()

    def reason(self) -> str:
        """What is wrong with the store; empty where nothing is."""
        jobs = self.runner.jobs.values()
        return self.trouble or next((job.store_trouble for job in jobs if job.store_trouble), "")

    async def ask(self) -> None:
        """Asks the store something, where it is open. Raises StoreFailed."""
        if self._opened:
            await self._store.batch("")

    # -- submitting ----------------------------------------------------------------------------

    async def submit(
        self, body: AsyncIterator[bytes], options: Options, *, skip: bool
    ) -> tuple[Batch, Faults]:
        """Takes a file in while it arrives; returns when the store has all of it for good.

        Bad lines are left out where `skip`; else BadFile is raised, after as many as are shown were found.
        Raises StoreFailed. What was not accepted leaves nothing behind.
        """
        await self.ready()
        batch = Batch(f"batch_{self._ids.request_id()}", options, Status.VALIDATING, self._clock.wall())
        await self._store.create(batch, self._worker)
        accepted = False
        try:
            faults = Faults()
            total = await self._take_in(batch.id, body, faults, skip=skip)
            if not total and not faults.count:
                faults.add(1, 'the file has no lines (write one request a line: {"custom_id": …})')
            if not total or (faults.count and not skip):
                raise BadFile(faults)
            await self._store.accept(batch.id, total)
            accepted = True
        finally:
            if not accepted:
                await asyncio.shield(self._discard(batch.id))
        known = await self._store.batch(batch.id)
        assert known is not None
        self.runner.stats.ended("accepted")
        self.runner.run(known)
        return known, faults

    async def _discard(self, batch: str) -> None:
        try:
            await self._store.delete(batch)
        except StoreFailed as error:  # at the next start it is removed
            self._log.warning("a batch that was not accepted is left", batch=batch, reason=str(error))

    async def _take_in(self, batch: str, body: AsyncIterator[bytes], faults: Faults, *, skip: bool) -> int:
        splitter = Splitter()
        items: list[Item] = []
        size = total = 0

        def take(number: int, line: bytes | None) -> None:
            nonlocal size
            try:
                if line is None:
                    raise too_long()
                if not line.strip():
                    return
                item = parse(number, line, self._calls.repeatable)
            except BadLine as error:
                faults.add(number, str(error))
                return
            items.append(item)
            size += len(item.request)

        async def store() -> None:
            nonlocal items, size, total
            if not items:
                return
            adding, items, size = items, [], 0
            duplicates = await self._store.add(batch, adding)
            total += len(adding) - len(duplicates)
            for each in duplicates:
                why = f'"custom_id" is that of line {each.first} (give each line one of its own)'
                faults.add(each.number, why)

        async for piece in body:
            for number, line in splitter.feed(piece):
                take(number, line)
                if len(items) >= TOGETHER or size >= TOGETHER_BYTES:
                    await store()
            if faults.count >= MOST_FAULTS and not skip:
                return 0
        for number, line in splitter.end():
            take(number, line)
        await store()
        return total

    # -- looking -------------------------------------------------------------------------------

    async def _any(self) -> bool:
        """Whether there may be batches: who only looks makes no file."""
        if not self._opened and not self._exists():
            return False
        await self.ready()
        return True

    async def listed(self) -> list[dict[str, object]]:
        if not await self._any():
            return []
        return [self._shown(batch) for batch in await self._store.batches()]

    async def shown(self, batch: str) -> dict[str, object] | None:
        """A batch and how it stands; None where there is none. Raises StoreFailed."""
        if not await self._any():
            return None
        known = await self._store.batch(batch)
        return None if known is None else self._shown(known)

    def _shown(self, batch: Batch) -> dict[str, object]:
        job = self.runner.jobs.get(batch.id)
        now = self._clock.now()
        counts = batch.counts
        status = batch.status
        shown: dict[str, object] = {"id": batch.id, "status": status.value}
        if batch.options.name:
            shown["name"] = batch.options.name
        shown["counts"] = {
            "total": counts.total,
            "completed": counts.ok,
            "failed": counts.failed,
            "unknown": counts.unknown,
            "pending": counts.pending,
        }
        shown["created"] = round(batch.created, 3)
        if batch.reason:
            shown["reason"] = batch.reason
        if batch.finished is not None:
            shown["finished"] = round(batch.finished, 3)
            rate = counts.done / max(0.001, batch.finished - batch.created)
            shown |= {"jobs_per_second": round(rate, 1), "rating": rating(rate)}
        if job is None or batch.over:
            return shown
        if status is Status.RUNNING and job.paused:
            shown["status"] = Status.PAUSED.value
            shown["reason"] = job.paused
        rate = job.rate.at(now)
        shown |= {"jobs_per_second": round(rate, 1), "rating": rating(rate)}
        shown["eta_seconds"] = round(counts.pending / rate, 1) if rate > 0 else None
        shown |= {"in_flight": len(job.in_flight), "concurrency": self._allowed(batch.id)}
        shown |= {"retries": job.retries, "cached": job.cached, "put_off": job.waiting}
        return shown

    def _allowed(self, batch: str) -> int:
        return min(self.runner.allowed, self.runner.jobs[batch].limit.limit)

    async def results(self, batch: str) -> AsyncIterator[bytes]:
        """All results, those too that come while this is read: ends when the batch is over.

        Each piece is some lines; an empty one says that there is nothing new. A store that fails meanwhile is
        waited for. Raises StoreFailed where it cannot be opened, and LookupError once the batch is deleted:
        what was read until then is not all.
        """
        await self.ready()
        after = 0
        while True:
            try:
                known = await self._store.batch(batch)
                page = [] if known is None else await self._store.results(batch, after, PAGE)
            except StoreFailed:
                yield b""
                await self._clock.sleep(POLL)
                continue
            if known is None:
                raise LookupError(f"there is no batch {batch} any more")
            if page:
                after = page[-1][0]
                yield b"".join(text + b"\n" for _, text in page)
            elif known.over:
                return
            else:
                yield b""
                await self._clock.sleep(POLL)

    # -- acting --------------------------------------------------------------------------------

    async def cancel(self, batch: str) -> bool:
        """No further line begins. False where the batch is over, or ends already. Raises StoreFailed."""
        await self.ready()
        return await self.runner.end(batch, "cancelled", Status.CANCELLED)

    async def delete(self, batch: str) -> bool:
        """Forgets a batch with its results. False where there is none. Raises StoreFailed."""
        return await self._any() and await self.runner.delete(batch)

    def figures(self) -> dict[str, Any]:
        """What all batches of this process come to, for the dashboard."""
        stats = self.runner.stats
        rate = stats.rate.at(self._clock.now())
        return {
            "jobs": dict(stats.jobs),
            "batches": dict(stats.batches),
            "queue_size": stats.queued,
            "in_flight": stats.in_flight,
            "concurrency": stats.limit,
            "jobs_per_second": round(rate, 1),
            "rating": rating(rate),
            "retries": stats.retries,
            "refusals": stats.refusals,
            "cached": stats.cached,
            "pressure": round(self.runner.pressure, 3),
            "history": [
                {"at": round(at, 1), "in_flight": flying, "jobs_per_second": round(speed, 1)}
                for at, flying, speed in stats.history
            ],
        }

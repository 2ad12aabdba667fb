"""What a process knows of its batches, and what the store is told of them: results, endings, trouble."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from sidecar.batch.job import Job
from sidecar.batch.jobs import JobStore, Result, Status, StoreFailed
from sidecar.batch.stats import Stats
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.clock import Clock

T = TypeVar("T")

STORE_PAUSE: Final = 1.0
"""Seconds between two tries at a store that failed."""


class Ledger:
    """The batches that run in this process. Results that come while others are stored go together."""

    def __init__(self, store: JobStore, clock: Clock, stats: Stats) -> None:
        self.store = store
        self.stats = stats
        self.jobs: dict[str, Job] = {}
        self.stopping = False
        """The process ends: nothing more begins, and nobody waits for a store that fails."""
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = get_logger("sidecar.batch")

    def holds(self, job: Job) -> bool:
        """Whether the batch is still there; nothing is stored of one that was deleted."""
        return self.jobs.get(job.batch.id) is job

    def spawn(self, work: Awaitable[None], name: str) -> asyncio.Task[None]:
        """A task that nobody waits for: an error of it is logged."""

        async def watched() -> None:
            try:
                await work
            except Exception:  # noqa: BLE001 - nobody waits for the task, and it is told of here
                self._log.exception("unexpected error", task=name)

        task = asyncio.get_running_loop().create_task(watched(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancels all that was spawned."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def end(self, batch: str, reason: str, status: Status) -> bool:
        """No further line begins. False where that was so already. Raises StoreFailed."""
        done = await self.store.end(batch, status, reason)
        job = self.jobs.get(batch)
        if done and job is not None:
            job.batch = replace(job.batch, status=status, reason=reason)
            job.wake.set()
        return done

    def done(self, job: Job, result: Result) -> None:
        """A line has its result, which is stored soon."""
        job.tries.pop(result.number, None)
        job.keep(result)
        if job.flushing is None:
            job.flushing = self.spawn(self._flush(job), f"results of {job.batch.id}")

    async def _flush(self, job: Job) -> None:
        """Stores results, all that came while the last ones were stored at a time."""
        try:
            while job.unstored and self.holds(job):
                results = job.take_unstored()
                fresh = await self.stored(
                    job,
                    lambda results=results: self.store.finish(job.batch.id, results, self._clock.wall()),  # type: ignore[misc]
                )
                job.held.difference_update(result.number for result in results)
                if fresh:
                    await self._note(job, fresh)
        finally:
            job.flushing = None
            job.wake.set()

    async def _note(self, job: Job, fresh: list[Result]) -> None:
        now = self._clock.now()
        job.count(fresh)
        job.rate.add(len(fresh), now)
        self.stats.rate.add(len(fresh), now)
        for result in fresh:
            self.stats.jobs[result.outcome.value] += 1
        stop_on = job.batch.options.stop_on
        counts = job.batch.counts
        if stop_on is not None and counts.failed + counts.unknown >= stop_on and not job.batch.reason:
            await self.stored(job, lambda: self.end(job.batch.id, "stopped", Status.FAILED))

    async def stored(self, job: Job, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the store answers, however long it takes it to be well again.

        None: the batch is gone, or the process stops and does not wait for that.
        """
        while True:
            try:
                answer = await ask()
            except StoreFailed as error:
                if not self.holds(job) or self.stopping:
                    return None
                if not job.store_trouble:
                    self._log.warning("batch pauses", batch=job.batch.id, reason=str(error))
                self.stats.store_errors += 1
                job.store_trouble = str(error)
                await self._clock.sleep(STORE_PAUSE)
            else:
                if job.store_trouble:
                    job.store_trouble = ""
                    self._log.info("batch goes on", batch=job.batch.id)
                return answer

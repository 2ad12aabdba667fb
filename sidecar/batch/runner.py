"""Runs batches: takes lines from the store, sends each through its own route, stores what came of it.

One task a batch; all share the slots that `Courtesy` allows (`Sender`). Results that come while others are
stored go together (`Ledger`), and while the store takes none, nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.batch.calls import Calls
from sidecar.batch.endings import given_up
from sidecar.batch.job import Job
from sidecar.batch.jobs import LEASE, Batch, JobStore, Status, StoreFailed
from sidecar.batch.ledger import Ledger
from sidecar.batch.sender import MOST_UNSTORED, Bounds, Sender
from sidecar.batch.stats import Stats
from sidecar.decisions.batch_concurrency import STEP, Courtesy, EagerLimit, Machine
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.clock import Clock, Random

IDLE: Final = 1.0
"""Seconds between two looks for lines while others hold the rest."""
PARTING: Final = 1.0
"""Seconds that stopping waits for the store: for what it was asked, and for results of lines that ended."""
ENDED_TOGETHER: Final = 200
"""Lines that are not to be sent, and are ended at a time."""


class Runner:
    """All batches of this process."""

    def __init__(
        self,
        store: JobStore,
        calls: Calls,
        clock: Clock,
        random: Random,
        *,
        worker: str,
        bounds: Bounds,
        keep: float,
        stats: Stats,
        machine: Callable[[], Machine],
        requests: Callable[[], Mapping[str, tuple[int, float]]],
    ) -> None:
        """`keep`: seconds after its end for which a batch is kept.

        `requests`: how many each route had so far, and the seconds they took, those of batches too.
        """
        self.store = store
        self.stats = stats
        self._ledger = Ledger(store, clock, stats)
        self.jobs = self._ledger.jobs
        self._clock = clock
        self._worker = worker
        self._bounds = bounds
        self._keep = keep
        self._machine = machine
        self._requests = requests
        self._courtesy = Courtesy(bounds.max_concurrency)
        self._sender = Sender(
            self._ledger,
            calls,
            self._courtesy,
            clock,
            random,
            worker=worker,
            bounds=bounds,
            machine=machine,
        )
        self._log = get_logger("sidecar.batch")

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Goes on with what the store holds. Raises StoreFailed."""
        await self._look()
        self._ledger.spawn(self._beat(), "batch lease")
        self._ledger.spawn(self._step(), "batch courtesy")

    async def stop(self, patience: float) -> None:
        """Begins nothing more; lines in flight get `patience` seconds, the rest is left to the next."""
        self._ledger.stopping = True
        until = self._clock.now() + patience
        driving = [job.driving for job in self.jobs.values() if job.driving and not job.store_trouble]
        for job in self.jobs.values():
            job.wake.set()
        await self._until(self._clock.now() + PARTING, driving)
        flying = [task for job in self.jobs.values() for task in job.in_flight.values()]
        await self._until(until, flying)
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
        flushing = [
            job.flushing for job in self.jobs.values() if job.flushing is not None and not job.store_trouble
        ]
        # Closing the store may take as long again.
        await self._until(max(until - PARTING, self._clock.now() + PARTING), flushing)
        await self._ledger.close()

    async def _until(self, at: float, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Until all tasks are done, or the time has come."""
        if not tasks:
            return
        over = asyncio.Event()
        timer = self._clock.arm(at, over.set)
        waiting = asyncio.ensure_future(asyncio.wait(tasks))
        waiting.add_done_callback(lambda _: over.set())
        await over.wait()
        timer.cancel()
        waiting.cancel()

    def run(self, batch: Batch) -> None:
        """Begins with a batch that was accepted, or goes on with it."""
        if batch.id in self.jobs or self._ledger.stopping:
            return
        bounds = self._bounds
        most = min(batch.options.max_concurrency or bounds.max_concurrency, bounds.max_concurrency)
        limit = EagerLimit(min(bounds.concurrency, most), 1, most)
        accepted = self._clock.now() - max(0.0, self._clock.wall() - batch.created)
        job = self.jobs[batch.id] = Job(batch, limit, accepted)
        job.driving = self._ledger.spawn(self._drive(job), f"batch {batch.id}")

    async def end(self, batch: str, reason: str, status: Status) -> bool:
        """No further line begins. False where that was so already. Raises StoreFailed."""
        return await self._ledger.end(batch, reason, status)

    async def delete(self, batch: str) -> bool:
        """Forgets a batch, whatever it does. False where there is none. Raises StoreFailed."""
        job = self.jobs.pop(batch, None)
        if job is not None:
            for task in job.in_flight.values():
                task.cancel()
            job.wake.set()
        return await self.store.delete(batch)

    async def _look(self) -> None:
        """What other processes began or ended, and what is to be forgotten."""
        now = self._clock.wall()
        here = tuple(self.jobs)
        batches = await self.store.batches()
        for name in set(here).difference(batch.id for batch in batches):  # another process deleted it
            job = self.jobs.pop(name, None)
            if job is not None:
                job.wake.set()
        for batch in batches:
            job = self.jobs.get(batch.id)
            if batch.over or batch.status is Status.VALIDATING:
                continue
            if job is None:
                self.run(batch)
            else:
                job.know(batch)
                job.wake.set()
        # What was read is old once anything else was waited for: this comes last.
        for batch in batches:
            if batch.finished is not None and batch.finished + self._keep < now:
                await self.store.delete(batch.id)

    async def _beat(self) -> None:
        while True:
            await self._clock.sleep(LEASE / 4)
            try:
                await self.store.renew(self._worker, self._clock.wall())
                await self._look()
            except StoreFailed as error:
                self.stats.store_errors += 1
                self._log.warning("the batch store failed", reason=str(error))

    async def _step(self) -> None:
        """Once a `STEP`: what interactive requests and the machine say."""
        before: dict[str, tuple[int, float]] = dict(self._requests())
        while True:
            await self._clock.sleep(STEP)
            own = self._sender.take_own()
            totals = dict(self._requests())
            seen = {}
            for route, (count, seconds) in totals.items():
                count_before, seconds_before = before.get(route, (0, 0.0))
                mine, mine_seconds = own.get(route, (0, 0.0))
                seen[route] = (
                    count - count_before - int(mine),
                    max(0.0, seconds - seconds_before - mine_seconds),
                )
            before = totals
            stats = self.stats
            self._courtesy.step(seen, self._machine(), busy=bool(own) or bool(stats.in_flight))
            now = self._clock.now()
            stats.queued = sum(job.batch.counts.pending for job in self.jobs.values())
            stats.paused = sum(bool(job.paused) for job in self.jobs.values())
            stats.limit = min(self._courtesy.allowed, sum(job.limit.limit for job in self.jobs.values()))
            if self.jobs:
                stats.history.append((self._clock.wall(), stats.in_flight, stats.rate.at(now)))
            for job in self.jobs.values():
                job.wake.set()

    @property
    def allowed(self) -> int:
        """Lines that may be in flight beside interactive traffic."""
        return self._courtesy.allowed

    @property
    def pressure(self) -> float:
        """How many times longer than alone interactive requests take."""
        return self._courtesy.pressure

    # -- one batch -----------------------------------------------------------------------------

    async def _drive(self, job: Job) -> None:
        batch = job.batch.id
        self._log.info("batch runs", batch=batch, lines=job.batch.counts.total)
        while self._ledger.holds(job) and not self._ledger.stopping:
            now = self._clock.now()
            if job.expires is not None and now >= job.expires and not job.batch.reason:
                await self._ledger.stored(job, lambda: self.end(batch, "deadline", Status.FAILED))
            if job.batch.reason:
                if await self._wind_up(job):
                    break
                continue
            job.ripen(now)
            dry = await self._sender.fetch(job)
            await self._sender.send(job)
            if dry and not job.held and await self._over(job):
                break
            await self._wait(job, idle=dry and not job.held)
        job.wake.set()

    # -- the end of a batch --------------------------------------------------------------------

    async def _wind_up(self, job: Job) -> bool:
        """Ends lines that are not to begin; True once the batch is over."""
        waiting = job.drop_waiting()
        if not waiting and len(job.unstored) <= MOST_UNSTORED:
            claimed = await self._ledger.stored(
                job, lambda: self.store.claim(job.batch.id, self._worker, ENDED_TOGETHER, self._clock.wall())
            )
            for each in claimed or ():
                self._sender.take(job, each)
            waiting = job.drop_waiting()
        for each in waiting:
            self._ledger.done(job, given_up(each, job.batch.reason, job.tries.get(each.item.number, 0)))
        if waiting or job.held:
            await self._wait(job, idle=False)
            return False
        if await self._over(job):
            return True
        await self._wait(job, idle=True)
        return False

    async def _over(self, job: Job) -> bool:
        """Whether no line is left, of those that others hold too."""
        batch = await self._ledger.stored(job, lambda: self.store.batch(job.batch.id))
        if batch is not None and not batch.over:
            job.know(batch)
            return False
        self.jobs.pop(job.batch.id, None)
        if batch is not None:
            self.stats.ended(batch.status.value)
            counts = batch.counts
            self._log.info(
                "batch ended",
                batch=batch.id,
                status=batch.status.value,
                ok=counts.ok,
                failed=counts.failed,
                unknown=counts.unknown,
            )
        return True

    async def _wait(self, job: Job, *, idle: bool) -> None:
        """Until something changes, or is due."""
        now = self._clock.now()
        until = now + IDLE if idle else job.next_at
        timer = None if until is None else self._clock.arm(max(until, now), job.wake.set)
        await job.wake.wait()
        job.wake.clear()
        if timer is not None:
            timer.cancel()

"""Runs batches: takes lines from the store, sends each through its own route, stores what came of it.

One task a batch; all share the slots that `Courtesy` allows. A line's slot is free once it is answered, its
result is stored together with those that came meanwhile, and while the store takes none, nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from sidecar.batch.calls import Answered, Calls, ended
from sidecar.batch.job import Job
from sidecar.batch.jobs import LEASE, Batch, Claimed, JobStore, Outcome, Result, Status, StoreFailed
from sidecar.batch.lines import asked_of
from sidecar.batch.stats import Stats
from sidecar.decisions.batch_concurrency import STEP, Courtesy, Machine, chunk_size
from sidecar.decisions.gradient import AdaptiveLimit
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.clock import Clock, Random

T = TypeVar("T")

MOST_UNSTORED: Final = 1000
"""Results above which a batch waits for its store."""
MOST_UNSTORED_BYTES: Final = 32 << 20
STORE_PAUSE: Final = 1.0
"""Seconds between two tries at a store that failed."""
IDLE: Final = 1.0
"""Seconds between two looks for lines while others hold the rest."""
PARTING: Final = 1.0
"""Seconds that stopping waits for the store: for what it was asked, and for results of lines that ended."""
SWEEP: Final = 60.0
"""Seconds between two looks for batches to be forgotten."""
BASE: Final = 0.5
LONGEST_BACKOFF: Final = 30.0
ENDINGS: Final = {
    "cancelled": ("batch_cancelled", "The batch was cancelled before this line began"),
    "deadline": ("batch_expired", "The deadline of the batch passed before this line began"),
    "stopped": ("batch_stopped", "The batch was stopped by its failures before this line began"),
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the configuration says. Times in seconds, sizes in bytes."""

    size: int = 50
    least_size: int = 10
    most_size: int = 200
    concurrency: int = 10
    max_concurrency: int = 50
    memory: int = 2048 << 20
    cpu: float = 85.0
    keep: float = 7 * 86400.0


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
        stats: Stats,
        machine: Callable[[], Machine],
        requests: Callable[[], Mapping[str, tuple[int, float]]],
    ) -> None:
        """`requests`: how many each route had so far, and the seconds they took, those of batches too."""
        self.store = store
        self.jobs: dict[str, Job] = {}
        self.stats = stats
        self._calls = calls
        self._clock = clock
        self._random = random
        self._worker = worker
        self._bounds = bounds
        self._machine = machine
        self._requests = requests
        self._courtesy = Courtesy(bounds.max_concurrency)
        self._own: dict[str, list[float]] = {}
        """Lines and their seconds in this step, by route."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._swept = clock.now()
        self._log = get_logger("sidecar.batch")

    # -- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Goes on with what the store holds. Raises StoreFailed."""
        await self._look()
        self._spawn(self._beat(), "batch lease")
        self._spawn(self._step(), "batch courtesy")

    async def stop(self, patience: float) -> None:
        """Begins nothing more; lines in flight get `patience` seconds, the rest is left to the next."""
        self._stopping = True
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
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        if batch.id in self.jobs or self._stopping:
            return
        bounds = self._bounds
        most = min(batch.options.max_concurrency or bounds.max_concurrency, bounds.max_concurrency)
        limit = AdaptiveLimit(min(bounds.concurrency, most), 1, most)
        accepted = self._clock.now() - max(0.0, self._clock.wall() - batch.created)
        job = self.jobs[batch.id] = Job(batch, limit, accepted)
        job.driving = self._spawn(self._drive(job), f"batch {batch.id}")

    async def end(self, batch: str, reason: str, status: Status) -> bool:
        """No further line begins. False where that was so already. Raises StoreFailed."""
        done = await self.store.end(batch, status, reason)
        job = self.jobs.get(batch)
        if done and job is not None:
            job.batch = replace(job.batch, status=status, reason=reason)
            job.wake.set()
        return done

    async def delete(self, batch: str) -> bool:
        """Forgets a batch, whatever it does. False where there is none. Raises StoreFailed."""
        job = self.jobs.pop(batch, None)
        if job is not None:
            for task in job.in_flight.values():
                task.cancel()
            job.wake.set()
        return await self.store.delete(batch)

    def _spawn(self, work: Awaitable[None], name: str) -> asyncio.Task[None]:
        async def watched() -> None:
            try:
                await work
            except Exception:  # noqa: BLE001 - nobody waits for the task, and it is told of here
                self._log.exception("unexpected error", task=name)

        task = asyncio.get_running_loop().create_task(watched(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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
                if batch.finished is not None and batch.finished + self._bounds.keep < now:
                    await self.store.delete(batch.id)
                continue
            if job is None:
                self.run(batch)
            else:
                job.batch = replace(batch, counts=batch.counts)
                job.wake.set()

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
            own, self._own = self._own, {}
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
        while self.jobs.get(batch) is job and not self._stopping:
            now = self._clock.now()
            if job.expires is not None and now >= job.expires and not job.batch.reason:
                await self._stored(job, lambda: self.end(batch, "deadline", Status.FAILED))
            if job.batch.reason:
                if await self._wind_up(job):
                    break
                continue
            job.ripen(now)
            dry = await self._fetch(job)
            await self._send(job)
            if dry and not job.held and await self._over(job):
                break
            await self._wait(job, idle=dry and not job.held)
        job.wake.set()

    async def _fetch(self, job: Job) -> bool:
        """Takes lines where few are left; True when there are none to be had."""
        free = self._free(job)
        if len(job.ready) > free or job.waiting > MOST_UNSTORED:
            return False
        bounds = self._bounds
        rate = job.rate.at(self._clock.now())
        size = chunk_size(rate, self._machine(), bounds.size, bounds.least_size, bounds.most_size)
        self.stats.chunk = size
        claimed = await self._stored(
            job, lambda: self.store.claim(job.batch.id, self._worker, size, self._clock.wall())
        )
        for each in claimed or ():
            self._take(job, each)
        return not claimed

    def _take(self, job: Job, claimed: Claimed) -> None:
        item = claimed.item
        if item.number in job.held:  # this process was so late that another took it for dead
            return
        job.held.add(item.number)
        if claimed.in_doubt and not item.repeatable:
            self._done(job, unknown(claimed))
        else:
            job.ready.append(claimed)

    def _free(self, job: Job) -> int:
        """Slots that the batch may fill now."""
        full = len(job.unstored) > MOST_UNSTORED or job.unstored_bytes > MOST_UNSTORED_BYTES
        if full or job.store_trouble or self._stopping:
            return 0
        own = len(job.in_flight)
        priority = job.batch.options.priority
        others = [
            other
            for other in self.jobs.values()
            if other is not job and (other.ready or other.in_flight) and not other.paused
        ]
        ahead = sum(other.limit.limit for other in others if other.batch.options.priority < priority)
        alike = 1 + sum(other.batch.options.priority == priority for other in others)
        allowed = self._courtesy.allowed
        share = max(1, (allowed - ahead) // alike)
        return max(0, min(job.limit.limit - own, share - own))

    async def _send(self, job: Job) -> None:
        """Fills the free slots."""
        now = self._clock.now()
        free = self._free(job)
        chosen: list[Claimed] = []
        while job.ready and len(chosen) < free:
            claimed = job.ready.popleft()
            if job.holds:
                route = self._calls.route_of(asked_of(claimed.item))
                if not job.may_send(route, now):
                    job.put_off(claimed, job.hold_ends(route, now))
                    continue
            chosen.append(claimed)
        batch = job.batch.id
        risky = [it.item.number for it in chosen if not it.item.repeatable]
        if risky:
            still = await self._stored(job, lambda: self.store.begin(batch, self._worker, risky))
            lost = set(risky).difference(still or ())
            for number in lost:
                job.held.discard(number)
            chosen = [it for it in chosen if it.item.number not in lost]
            if self._stopping:  # they are sent by nobody now: the next process is not to doubt it
                await self._stored(job, lambda: self.store.release(batch, self._worker, risky))
                return
        loop = asyncio.get_running_loop()
        for claimed in chosen:
            job.limit.take()
            self.stats.in_flight += 1
            job.in_flight[claimed.item.number] = loop.create_task(self._line(job, claimed))

    async def _line(self, job: Job, claimed: Claimed) -> None:
        item = claimed.item
        started = self._clock.now()
        try:
            answered = await self._calls.call(job.batch.id, item)
        except Exception:  # noqa: BLE001 - one line must not stop its batch
            self._log.exception("unexpected error", batch=job.batch.id, line=item.number)
            title = "The line could not be sent"
            self._done(job, ended(item, Outcome.FAILED, "internal_error", title, "the log says more"))
            return
        finally:
            job.limit.release()
            self.stats.in_flight -= 1
            job.in_flight.pop(item.number, None)
            job.wake.set()
        own = self._own.setdefault(answered.route, [0, 0.0])
        own[0] += 1
        own[1] += answered.seconds
        await self._judge(job, claimed, answered, started)

    async def _judge(self, job: Job, claimed: Claimed, answered: Answered, started: float) -> None:
        """Whether this is the line's result, or it goes again."""
        now = self._clock.now()
        item = claimed.item
        if answered.congested:
            job.limit.drop(started, now)
        elif not answered.refused:
            if answered.upstream_seconds > 0 and not answered.cached:
                job.limit.sample(answered.upstream_seconds)
            job.answered(answered.route, started)
        if answered.refused:
            self.stats.refusals += 1
            until = job.refused(answered.route, now, answered.wait, self._random.random(), answered.why)
            if item.repeatable:
                job.put_off(claimed, until)
            else:
                # Nothing was done: should this process die meanwhile, that is no doubt.
                await self._stored(job, lambda: self.store.release(job.batch.id, self._worker, [item.number]))
                job.held.discard(item.number)
            return
        tries = job.tries.get(item.number, 0)
        if (
            answered.passing
            and item.repeatable
            and tries < job.batch.options.retries
            and not job.batch.reason
        ):
            job.tries[item.number] = tries + 1
            job.retries += 1
            self.stats.retries += 1
            backoff = self._random.random() * min(LONGEST_BACKOFF, BASE * 2 ** (tries + 1))
            job.put_off(claimed, now + max(backoff, answered.wait or 0.0))
            return
        if answered.cached:
            job.cached += 1
            self.stats.cached += 1
        self._done(job, answered.result)

    # -- results -------------------------------------------------------------------------------

    def _done(self, job: Job, result: Result) -> None:
        job.tries.pop(result.number, None)
        job.keep(result)
        if job.flushing is None:
            job.flushing = self._spawn(self._flush(job), f"results of {job.batch.id}")

    async def _flush(self, job: Job) -> None:
        """Stores results, all that came while the last ones were stored at a time."""
        try:
            while job.unstored and self.jobs.get(job.batch.id) is job:
                results = job.take_unstored()
                fresh = await self._stored(
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
            await self._stored(job, lambda: self.end(job.batch.id, "stopped", Status.FAILED))

    async def _stored(self, job: Job, ask: Callable[[], Awaitable[T]]) -> T | None:
        """What the store answers, however long it takes it to be well again.

        None: the batch is gone, or the process stops and does not wait for that.
        """
        while True:
            try:
                answer = await ask()
            except StoreFailed as error:
                if self.jobs.get(job.batch.id) is not job or self._stopping:
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

    # -- the end of a batch --------------------------------------------------------------------

    async def _wind_up(self, job: Job) -> bool:
        """Ends lines that are not to begin; True once the batch is over."""
        code, title = ENDINGS.get(job.batch.reason, ENDINGS["stopped"])
        waiting = job.drop_waiting()
        if not waiting and len(job.unstored) <= MOST_UNSTORED:
            claimed = await self._stored(
                job, lambda: self.store.claim(job.batch.id, self._worker, 200, self._clock.wall())
            )
            for each in claimed or ():
                self._take(job, each)
            waiting = job.drop_waiting()
        for each in waiting:
            if each.in_doubt and not each.item.repeatable:
                self._done(job, unknown(each))
            else:
                self._done(job, ended(each.item, Outcome.FAILED, code, title, "it was not sent"))
        if waiting or job.held:
            await self._wait(job, idle=False)
            return False
        if await self._over(job):
            return True
        await self._wait(job, idle=True)
        return False

    async def _over(self, job: Job) -> bool:
        """Whether no line is left, of those that others hold too."""
        batch = await self._stored(job, lambda: self.store.batch(job.batch.id))
        if batch is not None and not batch.over:
            job.batch = batch
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


def unknown(claimed: Claimed) -> Result:
    """The result of a line of which nobody knows whether it was done."""
    return ended(
        claimed.item,
        Outcome.UNKNOWN,
        "unknown",
        "It is unknown whether this was done",
        "the process that had sent it died before its answer was stored, and it is not safe to repeat",
    )

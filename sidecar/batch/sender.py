"""Lines on their way: which are taken from the store, which are sent now, and what comes of each.

A line's slot is free once it is answered; its result is the ledger's. All batches share the slots that
`Courtesy` allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sidecar.batch.calls import Answered, Calls, ended
from sidecar.batch.endings import unknown
from sidecar.batch.job import Job
from sidecar.batch.jobs import Claimed, Outcome
from sidecar.batch.ledger import Ledger
from sidecar.batch.lines import asked_of
from sidecar.decisions.batch_concurrency import Courtesy, Machine, chunk_size
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.clock import Clock, Random

MOST_UNSTORED: Final = 1000
"""Results above which a batch waits for its store."""
MOST_UNSTORED_BYTES: Final = 32 << 20
BASE: Final = 0.5
LONGEST_BACKOFF: Final = 30.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the configuration says of the work: lines fetched at a time, and lines in flight."""

    size: int = 50
    least_size: int = 10
    most_size: int = 200
    concurrency: int = 10
    max_concurrency: int = 50


class Sender:
    """Of all batches of this process."""

    def __init__(
        self,
        ledger: Ledger,
        calls: Calls,
        courtesy: Courtesy,
        clock: Clock,
        random: Random,
        *,
        worker: str,
        bounds: Bounds,
        machine: Callable[[], Machine],
    ) -> None:
        self._ledger = ledger
        self._calls = calls
        self._courtesy = courtesy
        self._clock = clock
        self._random = random
        self._worker = worker
        self._bounds = bounds
        self._machine = machine
        self._own: dict[str, list[float]] = {}
        self._log = get_logger("sidecar.batch")

    def take_own(self) -> dict[str, list[float]]:
        """By route, lines that were answered since this was last asked, and the seconds that they took."""
        own, self._own = self._own, {}
        return own

    async def fetch(self, job: Job) -> bool:
        """Takes lines from the store where few are left; True when there are none to be had."""
        free = self._free(job)
        if len(job.ready) > free or job.waiting > MOST_UNSTORED:
            return False
        bounds = self._bounds
        rate = job.rate.at(self._clock.now())
        size = chunk_size(rate, self._machine(), bounds.size, bounds.least_size, bounds.most_size)
        self._ledger.stats.chunk = size
        claimed = await self._ledger.stored(
            job, lambda: self._ledger.store.claim(job.batch.id, self._worker, size, self._clock.wall())
        )
        for each in claimed or ():
            self.take(job, each)
        return not claimed

    def take(self, job: Job, claimed: Claimed) -> None:
        """A line was claimed: it is ready, or its result is that nobody knows."""
        item = claimed.item
        if item.number in job.held:  # this process was so late that another took it for dead
            return
        job.held.add(item.number)
        if claimed.in_doubt and not item.repeatable:
            self._ledger.done(job, unknown(claimed))
        else:
            job.ready.append(claimed)

    def _free(self, job: Job) -> int:
        """Slots that the batch may fill now."""
        full = len(job.unstored) > MOST_UNSTORED or job.unstored_bytes > MOST_UNSTORED_BYTES
        if full or job.store_trouble or self._ledger.stopping:
            return 0
        own = len(job.in_flight)
        priority = job.batch.options.priority
        others = [
            other
            for other in self._ledger.jobs.values()
            if other is not job and (other.ready or other.in_flight) and not other.paused
        ]
        ahead = sum(other.limit.limit for other in others if other.batch.options.priority < priority)
        alike = 1 + sum(other.batch.options.priority == priority for other in others)
        allowed = self._courtesy.allowed
        share = max(1, (allowed - ahead) // alike)
        return max(0, min(job.limit.limit - own, share - own))

    async def send(self, job: Job) -> None:
        """Fills the free slots."""
        now = self._clock.now()
        free = self._free(job)
        chosen: list[Claimed] = []
        while job.ready and len(chosen) < free:
            claimed = job.ready.popleft()
            if job.holds:
                route = self._calls.route_of(asked_of(claimed.item))
                if not job.may_send(route, claimed.item.number, now):
                    job.put_off(claimed, job.hold_ends(route, now))
                    continue
            chosen.append(claimed)
        batch = job.batch.id
        risky = [it.item.number for it in chosen if not it.item.repeatable]
        if risky:
            still = await self._ledger.stored(
                job, lambda: self._ledger.store.begin(batch, self._worker, risky)
            )
            lost = set(risky).difference(still or ())
            for number in lost:
                job.held.discard(number)
                job.landed(number)
            chosen = [it for it in chosen if it.item.number not in lost]
            if self._ledger.stopping:  # they are sent by nobody now: the next process is not to doubt it
                await self._ledger.stored(job, lambda: self._ledger.store.release(batch, self._worker, risky))
                return
            if not self._ledger.holds(job):
                return
        loop = asyncio.get_running_loop()
        for claimed in chosen:
            job.limit.take()
            self._ledger.stats.in_flight += 1
            job.in_flight[claimed.item.number] = loop.create_task(self._line(job, claimed))

    async def _line(self, job: Job, claimed: Claimed) -> None:
        item = claimed.item
        started = self._clock.now()
        try:
            answered = await self._calls.call(job.batch.id, item)
        except Exception:  # noqa: BLE001 - one line must not stop its batch
            self._log.exception("unexpected error", batch=job.batch.id, line=item.number)
            title = "The line could not be sent"
            self._ledger.done(job, ended(item, Outcome.FAILED, "internal_error", title, "the log says more"))
            return
        finally:
            job.limit.release()
            self._ledger.stats.in_flight -= 1
            job.landed(item.number)
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
            if not answered.refused:
                job.doubted(answered.route, started, now, self._random.random(), answered.why)
        elif not answered.refused:
            if answered.upstream_seconds > 0 and not answered.cached:
                job.limit.sample(answered.upstream_seconds)
            job.answered(answered.route, started)
        if answered.refused:
            self._ledger.stats.refusals += 1
            until = job.refused(answered.route, now, answered.wait, self._random.random(), answered.why)
            if item.repeatable:
                job.put_off(claimed, until)
            else:
                # Nothing was done: should this process die meanwhile, that is no doubt.
                await self._ledger.stored(
                    job, lambda: self._ledger.store.release(job.batch.id, self._worker, [item.number])
                )
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
            self._ledger.stats.retries += 1
            backoff = self._random.random() * min(LONGEST_BACKOFF, BASE * 2 ** (tries + 1))
            job.put_off(claimed, now + max(backoff, answered.wait or 0.0))
            return
        if answered.cached:
            job.cached += 1
            self._ledger.stats.cached += 1
        self._ledger.done(job, answered.result)

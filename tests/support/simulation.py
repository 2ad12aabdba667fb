"""A server of limited capacity behind a route, and clients that come at a rate, all in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sidecar.exchange import Exchange, Response
from tests.support.clock import ManualClock
from tests.support.script import Bench, Send

TURNS = 6
"""A completion wakes its task, which lets a waiter in, which starts at the server: that is all there is."""


class Server:
    """`workers` at a time, the others wait at the server in order. Nothing that has begun is ever undone."""

    def __init__(self, clock: ManualClock, workers: int, seconds: Callable[[], float]) -> None:
        """`seconds` draws how long the next request takes, at a slowness of 1."""
        self._clock = clock
        self._seconds = seconds
        self._queue: deque[asyncio.Future[None]] = deque()
        self._busy = 0
        self.workers = workers
        self.slowness = 1.0
        self.most = 0
        """The most that were there at a time."""

    async def __call__(self, exchange: Exchange) -> Response:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(done)
        self.most = max(self.most, self._busy + len(self._queue))
        self.work()
        await asyncio.shield(done)
        return Response(200, [], b"ok")

    def work(self) -> None:
        while self._queue and self._busy < self.workers:
            self._busy += 1
            done = self._queue.popleft()
            self._clock.arm(self._clock.now() + self._seconds() * self.slowness, partial(self._finish, done))

    def _finish(self, done: asyncio.Future[None]) -> None:
        self._busy -= 1
        done.set_result(None)
        self.work()


@dataclass
class Phase:
    """Some seconds of the same capacity and the same arrivals, and what came of them."""

    seconds: float
    rate: float
    workers: int
    slowness: float = 1.0
    arrived: int = 0
    good: int = 0
    """Answers in time, that came within the phase."""
    times: list[float] = field(default_factory=list)
    """Seconds from arrival to answer, of what was answered with 200."""

    def ideal(self, service: float) -> float:
        """Answers that a perfect limit would give, where one takes `service` seconds."""
        return min(self.arrived, self.seconds * self.workers / (service * self.slowness))

    def quantile(self, share: float) -> float:
        ranked = sorted(self.times)
        return ranked[int(share * len(ranked))] if ranked else 0.0


async def simulate(
    phases: Sequence[Phase],
    seconds: Callable[[random.Random], float],
    patience: float,
    settings: Mapping[str, Any],
    seed: int = 1,
) -> Bench:
    """Runs the phases through a route with these policies; clients want an answer within `patience` seconds.

    Arrivals are a Poisson process that does not care how the server is (an open model).
    """
    chance = random.Random(seed)
    clock = ManualClock(turns=TURNS)
    server = Server(clock, phases[0].workers, lambda: seconds(chance))
    bench = Bench(server, clock=clock)
    send = bench.route(**settings)
    for phase in phases:
        server.workers, server.slowness = phase.workers, phase.slowness
        server.work()
        end = clock.now() + phase.seconds
        following = clock.now() + chance.expovariate(phase.rate)
        while following < end:
            await clock.advance(following - clock.now())
            phase.arrived += 1
            _count(send, phase, clock, patience)
            following += chance.expovariate(phase.rate)
        await clock.advance(end - clock.now())
    await clock.advance(60.0)
    return bench


def _count(send: Send, phase: Phase, clock: ManualClock, patience: float) -> None:
    arrived = clock.now()

    def ended(task: asyncio.Task[Response]) -> None:
        took = clock.now() - arrived
        if task.result().status == 200:
            phase.times.append(took)
            phase.good += took <= patience

    send().add_done_callback(ended)

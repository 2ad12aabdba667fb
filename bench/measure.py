"""Rounds of measurement: every proxy runs every case in each round, next to its peers in time."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import psutil

from bench.load import Case, Outcome, counted, drive, right
from bench.processes import PROXY_CPU, Running, StartError, busy_seconds
from bench.proxies import Bench, Proxy

WARM_UP = 1
"""Seconds per proxy and case before the first round; not counted."""

FOREIGN = 0.1
"""Share of the proxy's CPU above which other work spoils a run, and it is repeated."""
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of wrk against one proxy."""

    proxy: str
    case: str
    connections: int
    round: int
    outcome: Outcome
    cpu: float
    """Seconds of CPU the proxy's processes used."""
    foreign: float
    """Share of the proxy's CPU that went to other work."""
    rss: int
    logged: int
    """Bytes of access log."""
    missed: int | None
    """Requests wrk counted and /metrics did not (negative: the other way); None without /metrics."""

    repeats: int = 0
    """Runs thrown away before this one."""

    @property
    def cpu_per_request(self) -> float:
        """Microseconds."""
        return self.cpu / max(self.outcome.requests, 1) * 1e6

    @property
    def throughput(self) -> float:
        return self.outcome.requests / self.outcome.seconds

    @property
    def busy(self) -> float:
        """Share of one CPU that the proxy used: near 1, the throughput is the proxy's own limit."""
        return self.cpu / self.outcome.seconds

    @property
    def faults(self) -> tuple[str, ...]:
        # What is in flight when wrk stops is counted by the proxy only.
        if self.missed is None or -self.connections <= self.missed <= 0:
            return self.outcome.faults
        return (*self.outcome.faults, f"/metrics differs from wrk by {-self.missed} requests")


@dataclass(frozen=True, slots=True)
class Plan:
    wrk: str
    proxies: Sequence[Proxy]
    cases: Sequence[Case]
    connections: Sequence[int]
    rounds: int
    seconds: int

    @staticmethod
    def takes(proxy: Proxy, case: Case) -> bool:
        return proxy.caches if case.cached else proxy.forwards


def sample(plan: Plan, proxy: Proxy, running: Running, case: Case, connections: int, nth: int) -> Sample:
    served = counted(running.place.admin) if proxy.counts else 0
    running.take_log()
    start, cpu, busy = time.monotonic(), running.cpu_seconds(), busy_seconds(PROXY_CPU)
    outcome = drive(plan.wrk, running.place.port, case, connections, plan.seconds)
    cpu = running.cpu_seconds() - cpu
    foreign = max(busy_seconds(PROXY_CPU) - busy - cpu, 0) / (time.monotonic() - start)
    missed = outcome.requests - (counted(running.place.admin) - served) if proxy.counts else None
    rss, logged = running.rss(), running.take_log()
    if not right(running.place.port, case):
        outcome = replace(outcome, faults=(*outcome.faults, "answers differ from the origin's, or stay away"))
    return Sample(proxy.name, case.name, connections, nth, outcome, cpu, foreign, rss, logged, missed)


def undisturbed(plan: Plan, proxy: Proxy, running: Running, case: Case, connections: int, nth: int) -> Sample:
    """The first run of a few that other work did not spoil; where all are spoilt, the least spoilt."""
    tries = []
    for _ in range(REPEATS + 1):
        tries.append(sample(plan, proxy, running, case, connections, nth))
        if tries[-1].foreign <= FOREIGN:
            break
    best = min(tries, key=lambda each: each.foreign)
    return replace(best, repeats=len(tries) - 1)


def start_all(stack: contextlib.ExitStack, bench: Bench, plan: Plan) -> list[tuple[Proxy, Running]]:
    """Starts and warms each proxy; one that fails is named on stderr and left out."""
    running = []
    for proxy in plan.proxies:
        try:
            started = stack.enter_context(bench.run(proxy))
        except StartError as error:
            print(error, file=sys.stderr)
            continue
        for case in (case for case in plan.cases if plan.takes(proxy, case)):
            drive(plan.wrk, started.place.port, case, 16, WARM_UP)
        running.append((proxy, started))
    return running


def rounds(bench: Bench, plan: Plan) -> Iterator[Sample]:
    """All samples. Within a case the proxies follow each other, the first to go another in each round.

    A proxy that fails on the way is named on stderr and left out from there on.
    """
    with contextlib.ExitStack() as stack:
        running = start_all(stack, bench, plan)
        for nth in range(plan.rounds):
            first = nth % max(len(running), 1)
            order = running[first:] + running[:first]
            for case, connections in itertools.product(plan.cases, plan.connections):
                for each in [each for each in order if plan.takes(each[0], case)]:
                    try:
                        yield undisturbed(plan, *each, case, connections, nth)
                    except (OSError, psutil.Error, subprocess.CalledProcessError) as error:
                        print(f"{each[0].name} failed: {error}", file=sys.stderr)
                        order.remove(each)
                        running.remove(each)

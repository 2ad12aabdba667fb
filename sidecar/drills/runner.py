"""Runs a scenario: sets up, loads, breaks, watches, stops where it must, and judges."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sidecar.drills.breaking import broken
from sidecar.drills.errors import StandError
from sidecar.drills.figures import Held, Metrics, hit_ratio, open_breakers
from sidecar.drills.judging import Measured, Point, Status, judged, recovery, throughput
from sidecar.drills.plan import Plan
from sidecar.drills.reading import Found
from sidecar.drills.scenario import AnyScenario, Break
from sidecar.drills.shape import shortened
from sidecar.drills.stand import Stand, Target

Say = Callable[[str], None]
_GRACE: Final = 15.0
"""Seconds that a load may take to end after it was told to."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    target: str | None = None
    admin: str | None = None
    token: str | None = None
    against: str | None = None
    without: tuple[str, ...] = ()
    """Features to switch off: a guard that is to be missed."""
    sets: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0
    """Of the time that the scenario's load takes."""
    hosts: tuple[str, ...] = ()
    share_of_loads: float = 1.0
    """The same, for what is no drill."""
    leave_out: tuple[str, ...] = ()
    """Limits that do not count."""


@dataclass(slots=True)
class Sample:
    """What the sidecar said of itself at a moment, in seconds from the start of the load."""

    at: float
    open_breakers: list[str]
    hit_ratio: float | None
    memory: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran, with all its processes."""

    cpus: int
    busy: float
    """Load average of the last minute, before anything was started: what else there is to do."""


@dataclass(slots=True)
class Outcome:
    """All there is to report of a scenario."""

    name: str
    title: str
    status: Status
    reason: str
    """Why it was aborted; empty otherwise."""
    points: list[Point]
    measured: Measured
    load: dict[str, Any]
    """The load's result: `sidecar.drills.load.Result`."""
    samples: list[Sample]
    windows: list[tuple[float, float, str]]
    """When what was broken."""
    against: dict[str, Any] | None = None
    drill: bool = False
    """Something was broken."""
    held: tuple[Held, Held] | None = None
    """By the sidecar, before the load and after it; None: not asked for."""
    share: float = 1.0
    """Of the scenario's time that the load took."""
    machine: Machine | None = None


async def run(found: Found, options: Options, say: Say) -> Outcome:
    """Raises StandError, ConfigError."""
    machine = Machine(os.cpu_count() or 1, os.getloadavg()[0])
    with tempfile.TemporaryDirectory(prefix="sidecar-drill-") as directory:
        target: Target
        if options.target is None:
            settings = dict(options.sets) | {f"features.{name}": "false" for name in options.without}
            target = Stand(found, Path(directory), settings)
        else:
            target = Target(options.target.rstrip("/"), options.admin, options.token)
        try:
            await target.start()
            outcome = await _Run(found, options, target, say).go()
            outcome.share, outcome.machine = options.share, machine
            if options.against is not None:
                say(f"the same load at {options.against}")
                plan = _plan(found, options.against.rstrip("/"), options)
                outcome.against = await _load(plan, lambda _: None)
        finally:
            for problem in await target.stop():
                say(problem)
        return outcome


def _plan(found: Found, url: str, options: Options) -> Plan:
    load = found.scenario.load
    assert load is not None
    plan = found.plan(url, shortened(load.segments, options.share))
    return plan.model_copy(update={"hosts": (*plan.hosts, *options.hosts)})


async def _load(plan: Plan, tell: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Runs the load in a process of its own; `tell` gets its lines, and ends it by returning True."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar.drills.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(plan.model_dump_json().encode() + b"\n")
        await process.stdin.drain()
        async for line in process.stdout:
            told = json.loads(line)
            if "error" in told:
                raise StandError(told["error"])
            if "result" in told:
                result: dict[str, Any] = told["result"]
                return result
            if tell(told):
                process.stdin.close()
        raise StandError("the load ended without a result")
    finally:
        process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                try:
                    await asyncio.wait_for(process.wait(), _GRACE)
                except TimeoutError:
                    process.kill()


class _Run:
    def __init__(self, found: Found, options: Options, target: Target, say: Say) -> None:
        self._found, self._options, self._target, self._say = found, options, target, say
        self._scenario: AnyScenario = found.scenario
        self._asserts = found.scenario.asserts.model_copy(update=dict.fromkeys(options.leave_out))
        self._started: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._windows: list[tuple[float, float, str]] = []
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """For each thing that can be broken."""
        self._now: dict[str, None] = {}
        """What is broken."""
        self._samples: list[Sample] = []
        self._reason = ""
        self._faults: asyncio.Task[None] | None = None

    async def go(self) -> Outcome:
        target = self._target
        before = await target.metrics()
        held = await target.held() if self._asserts.leaks is not None else None
        apps, calls = target.app_requests(), await target.provider_calls()
        plan = _plan(self._found, target.url, self._options)
        self._faults = asyncio.create_task(self._break_all())
        watching = asyncio.create_task(self._watch(before))
        try:
            load = await _load(plan, self._told)
            if self._reason:  # what is broken is mended at once
                self._faults.cancel()
            await asyncio.gather(self._faults, return_exceptions=bool(self._reason))
        finally:
            for task in (self._faults, watching):
                task.cancel()
            await asyncio.gather(self._faults, watching, return_exceptions=True)
        measured = await self._measured(plan, load, before, apps, calls)
        left = await self._left(held) if held is not None and not self._reason else None
        if held is not None and left is not None:
            measured = replace(measured, leaks=left.more_than(held))
        points = judged(self._asserts, measured)
        status: Status = "passed" if all(point.held for point in points) else "failed"
        if self._reason:
            status = "aborted"
        return Outcome(
            self._scenario.name,
            self._scenario.title,
            status,
            self._reason,
            points,
            measured,
            load,
            self._samples,
            self._windows,
            drill=self._scenario.is_drill,
            held=(held, left) if held is not None and left is not None else None,
        )

    # -- while it runs

    def _told(self, line: Mapping[str, Any]) -> bool:
        """Hears the load; whether it is to end."""
        if "start" in line:
            if not self._started.done():
                self._started.set_result(line["start"])
            return False
        done, failed = line["fine"] + line["failed"], line["failed"]
        last = self._samples[-1] if self._samples else None
        state = [f"broken: {', '.join(self._now)}"] if self._now else []
        state += [f"breaker open: {', '.join(last.open_breakers)}"] if last and last.open_breakers else []
        self._say(
            f"{line['at']:5.0f} s  {done:7d} done  {line['fine'] / max(line['at'], 1e-9):7.1f}/s fine  "
            f"{failed:6d} failed  {line['open']:4d} open  p50 {line['p50'] * 1000:7.1f}  "
            f"p95 {line['p95'] * 1000:7.1f}  p99 {line['p99'] * 1000:7.1f} ms  {'  '.join(state)}".rstrip()
        )
        abort = self._scenario.abort
        if abort.failed is not None and done >= abort.after and failed > abort.failed * done:
            self._reason = f"{failed} of {done} requests had failed, more than abort.failed allows"
        if self._faults is not None and self._faults.done() and not self._faults.cancelled():
            error = self._faults.exception()
            if error is not None:
                self._reason = str(error)
        return bool(self._reason)

    async def _break_all(self) -> None:
        start = await self._started
        async with asyncio.TaskGroup() as group:
            for fault in self._scenario.faults:
                group.create_task(self._break(fault, start))

    async def _break(self, fault: Break, start: float) -> None:
        share = self._options.share
        if fault.at:  # else at once: the first request comes a little later
            await asyncio.sleep(start + fault.at * share - time.monotonic())
        async with contextlib.AsyncExitStack() as stack:
            # Where one fault follows another that has to be mended first.
            for thing in sorted(fault.things):
                await stack.enter_async_context(self._locks[thing])
            began = max(0.0, time.monotonic() - start)
            self._now[fault.told] = None
            try:
                async with broken(fault, self._target):
                    await asyncio.sleep(start + (fault.at + fault.duration) * share - time.monotonic())
            finally:
                self._now.pop(fault.told, None)
                self._windows.append((began, time.monotonic() - start, fault.told))

    async def _watch(self, before: Metrics) -> None:
        """Once a second, what the sidecar says."""
        start = await self._started
        while True:
            await asyncio.sleep(1.0)
            metrics = await self._target.metrics()
            self._samples.append(
                Sample(
                    time.monotonic() - start,
                    open_breakers(metrics),
                    hit_ratio(before, metrics),
                    self._target.memory(metrics),
                )
            )

    # -- afterwards

    async def _left(self, before: Held) -> Held | None:
        """What the sidecar holds once it has let go, or has not for long enough."""
        allowed = self._asserts.leaks
        assert allowed is not None
        give_up = time.monotonic() + allowed.within
        while True:
            now = await self._target.held()
            over = now is not None and any(
                more > getattr(allowed, name) for name, more in now.more_than(before).items()
            )
            if not over or time.monotonic() >= give_up:
                return now
            await asyncio.sleep(0.5)

    async def _measured(
        self, plan: Plan, load: Mapping[str, Any], before: Metrics, apps: int | None, calls: int | None
    ) -> Measured:
        target, requests = self._target, load["requests"]
        after = await target.metrics()
        apps_now, calls_now = target.app_requests(), await target.provider_calls()
        took = load["percentiles"]
        end = sum(segment.seconds for segment in plan.segments)
        mended = max((until for _, until, _ in self._windows), default=None)
        memory = [it.memory for it in self._samples if it.memory is not None]
        answered = requests or 1
        return Measured(
            requests=requests,
            availability=load["fine"] / answered,
            p50=took["p50"],
            p95=took["p95"],
            p99=took["p99"],
            throughput=throughput(load["timeline"], end - plan.segments[-1].seconds, end),
            amplification=None if apps is None or apps_now is None else (apps_now - apps) / answered,
            provider_calls=None if calls is None or calls_now is None else calls_now - calls,
            hit_ratio=hit_ratio(before, after),
            degraded=load["degraded"] / answered,
            wrong=load["wrong"] / answered,
            recovery=None if mended is None else recovery(load["timeline"], mended),
            memory=max(memory, default=None),
        )


async def run_all(
    suite: Sequence[Found], options: Options, say: Say, finished: Callable[[Outcome], None]
) -> list[Outcome]:
    """One after the other; a scenario that cannot be set up ends it. Raises StandError, ConfigError."""
    outcomes = []
    for found in suite:
        say(f"== {found.scenario.name}: {found.scenario.title}")
        given = options
        if not found.scenario.is_drill:
            given = replace(options, share=options.share * options.share_of_loads)
        outcome = await run(found, given, say)
        finished(outcome)
        outcomes.append(outcome)
    return outcomes

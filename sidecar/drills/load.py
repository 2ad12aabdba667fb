"""The load, in a process of its own: it shares no event loop with what it measures.

    python -m sidecar.drills.load < plan.json

The first line of standard input is a `Plan`. When that input ends, as it does with whoever started this, the
load ends early and reports what there was. On standard output come JSON lines: one a second, then `result`.

Latency counts from the moment at which a request was due, not from when it was sent: a server that stands
still is charged for all who came meanwhile (G. Tene, "How NOT to Measure Latency": coordinated omission).
Times are in seconds, moments on the monotonic clock of the machine.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import uvloop
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]

from sidecar.drills.client import Answer, Clients, Done, Wire
from sidecar.drills.plan import LONGEST, MOST, ForeignTarget, Plan, Rendered, allowed, rendered
from sidecar.drills.shape import due_times

SLIP_ALLOWED: Final = 0.005
"""Seconds by which the 99th percentile of requests may be sent late; above it the load did not keep up."""
SHARES: Final = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
_TICK: Final = 1.0
_SWEEP: Final = 0.02
_LEAD: Final = 0.1
"""Seconds from now to the first moment that anything can be due."""


@dataclass(slots=True)
class Second:
    """What became of the requests that were due in one second."""

    due: int = 0
    fine: int = 0
    failed: int = 0
    degraded: int = 0
    wrong: int = 0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0


@dataclass(slots=True)
class Result:
    """What was measured. Times are seconds."""

    start: float
    """Monotonic, of the machine; `due` counts from here."""
    seconds: float
    requests: int = 0
    fine: int = 0
    """Answered as expected."""
    failed: int = 0
    degraded: int = 0
    wrong: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    """Of what failed: `status 503`, `refused`, `reset`, `timeout`, …"""
    statuses: dict[str, int] = field(default_factory=dict)
    percentiles: dict[str, float] = field(default_factory=dict)
    """Of all that was answered, with whatever status, or given up for time."""
    slip: dict[str, float] = field(default_factory=dict)
    """By how much requests were sent late: the load's own fault."""
    kept_up: bool = True
    timeline: list[Second] = field(default_factory=list)


def histogram() -> HdrHistogram:
    """Microseconds up to an hour, to three digits."""
    return HdrHistogram(1, int(LONGEST * 1e6), 3)


def percentiles(of: HdrHistogram) -> dict[str, float]:
    found = {name: of.get_value_at_percentile(share) / 1e6 for name, share in SHARES.items()}
    return {**found, "max": of.get_max_value() / 1e6}


class Load:
    """One load, from its plan."""

    def __init__(self, plan: Plan) -> None:
        """Raises ForeignTarget, OSError."""
        aim = allowed(plan)
        self._plan = plan
        self._chance = random.Random(plan.seed)  # noqa: S311 - the same load for the same seed
        self._clients = Clients(aim, plan.connections)
        self._kinds, self._weights = rendered(plan, self._chance)
        self._took, self._slipped, self._recent = histogram(), histogram(), histogram()
        self._causes: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._seconds: list[Second] = []
        self._times: list[list[float]] = []
        self._flying: deque[tuple[float, Wire, list[bool]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self.stopped = asyncio.Event()

    async def run(self) -> Result:
        loop = asyncio.get_running_loop()
        start = loop.time() + _LEAD
        clock_start = time.monotonic() + _LEAD
        _say({"start": clock_start})
        helpers = [asyncio.create_task(it) for it in (self._sweeping(), self._telling(start))]
        end = await self._arrivals(start)
        last = start + end + self._plan.patience + _TICK
        while self._open and loop.time() < last and not self.stopped.is_set():
            await self._pause(_SWEEP)
        for helper in (*helpers, *self._tasks):
            helper.cancel()
        self._clients.close()
        return self._result(clock_start, max(end, 1e-9))

    async def _arrivals(self, start: float) -> float:
        """Sends all that is due; returns how many seconds after `start` the last of it was."""
        loop = asyncio.get_running_loop()
        uniform = self._chance.random if self._plan.arrivals == "poisson" else None
        most = min(self._plan.most, MOST)
        whole = sum(segment.seconds for segment in self._plan.segments)
        for sent, due in enumerate(due_times(self._plan.segments, uniform)):
            if sent >= most or due > LONGEST:
                return due
            while (wait := start + due - loop.time()) > 0 and not self.stopped.is_set():
                await self._pause(wait)
            if self.stopped.is_set():
                return loop.time() - start
            self._send(due, start)
        while (wait := start + whole - loop.time()) > 0 and not self.stopped.is_set():
            await self._pause(wait)
        return whole

    async def _pause(self, seconds: float) -> None:
        """Soon enough to see that it is to stop."""
        await asyncio.sleep(min(seconds, 0.2))

    def _send(self, due: float, start: float) -> None:
        """Sends what was due, at once if a connection is there."""
        kind = self._chance.choices(self._kinds, self._weights)[0]
        at = int(due)
        while len(self._seconds) <= at:
            self._seconds.append(Second())
            self._times.append([])
        self._seconds[at].due += 1
        self._open += 1
        late = asyncio.get_running_loop().time() - start - due
        self._slipped.record_value(max(1, int(late * 1e6)))
        if late > self._plan.patience:
            self._judge(Answer(0, "timeout"), due, start, kind)
            return
        ended = [False]

        def done(answer: Answer) -> None:
            ended[0] = True
            self._judge(answer, due, start, kind)

        limit = start + due + self._plan.patience
        request = kind.make()
        wire = self._clients.on_open_wire(request, kind.wrong, done)
        if wire is not None:
            self._flying.append((limit, wire, ended))
            return
        task = asyncio.create_task(self._connect(request, kind, done, limit, ended))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(
        self, request: bytes, kind: Rendered, done: Done, limit: float, ended: list[bool]
    ) -> None:
        # To connect takes time, too, and there is a limit on that as on all else.
        try:
            async with asyncio.timeout_at(limit):
                wire = await self._clients.on_new_wire(request, kind.wrong, done)
        except TimeoutError:
            done(Answer(0, "timeout"))
            return
        if wire is not None and not ended[0]:
            self._flying.append((limit, wire, ended))

    def _judge(self, answer: Answer, due: float, start: float, kind: Rendered) -> None:
        took = asyncio.get_running_loop().time() - start - due
        self._open -= 1
        second = self._seconds[int(due)]
        if answer.status or answer.cause == "timeout":
            micros = max(1, int(took * 1e6))
            self._took.record_value(micros)
            self._recent.record_value(micros)
            self._times[int(due)].append(took)
        expected = kind.request.expect
        fine = answer.status in expected if expected else 200 <= answer.status < 400
        if answer.status:
            self._statuses[str(answer.status)] += 1
        if fine:
            second.fine += 1
        else:
            second.failed += 1
            self._causes[answer.cause or f"status {answer.status}"] += 1
        second.degraded += answer.degraded
        second.wrong += answer.wrong

    async def _sweeping(self) -> None:
        """Gives up what has taken too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP)
            now = loop.time()
            for _ in range(len(self._flying)):
                limit, wire, ended = self._flying[0]
                if not ended[0] and limit > now:
                    break
                self._flying.popleft()
                if not ended[0]:
                    wire.give_up("timeout")

    async def _telling(self, start: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_TICK)
            fine, failed = (sum(getattr(it, what) for it in self._seconds) for what in ("fine", "failed"))
            recent = percentiles(self._recent)
            self._recent.reset()
            _say(
                {
                    "at": loop.time() - start,
                    "due": sum(it.due for it in self._seconds),
                    "fine": fine,
                    "failed": failed,
                    "open": self._open,
                    "p50": recent["p50"],
                    "p95": recent["p95"],
                    "p99": recent["p99"],
                }
            )

    def _result(self, start: float, seconds: float) -> Result:
        for second, times in zip(self._seconds, self._times, strict=True):
            times.sort()
            if times:
                second.p50, second.p95, second.p99 = (
                    times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.95, 0.99)
                )
        total = {what: sum(getattr(it, what) for it in self._seconds) for what in _SUMMED}
        slip = percentiles(self._slipped)
        return Result(
            start,
            seconds,
            total["due"],
            total["fine"],
            total["failed"],
            total["degraded"],
            total["wrong"],
            dict(self._causes.most_common()),
            dict(self._statuses),
            percentiles(self._took),
            slip,
            slip["p99"] <= SLIP_ALLOWED,
            self._seconds,
        )


_SUMMED: Final = ("due", "fine", "failed", "degraded", "wrong")


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _main() -> int:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    plan = Plan.model_validate_json(await reader.readline())
    try:
        load = Load(plan)
    except (ForeignTarget, OSError) as error:
        _say({"error": str(error)})
        return 2

    async def until_input_ends() -> None:
        await reader.read()
        load.stopped.set()

    watching = asyncio.create_task(until_input_ends())
    # What was made so far lives as long as the process; to look through it would make requests late.
    gc.collect()
    gc.freeze()
    result = await load.run()
    watching.cancel()
    _say({"result": asdict(result)})
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(_main()))

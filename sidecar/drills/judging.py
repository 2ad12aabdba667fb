"""The verdict, from what was measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sidecar.drills.figures import Held
from sidecar.drills.scenario import Asserts, Leaks

Status = Literal["passed", "failed", "aborted"]
WELL: Final = 0.99
"""Share of a second's requests that have to be answered for it to count as recovered."""

MENDS: Final[Mapping[str, str]] = {
    "availability": "retry what is safe, serve stale (cache.stale_if_error), add a fallback: docs/retries.md",
    "p50": "cache what repeats; see which route is slow in /monitoring/performance",
    "p95": "limit what the app has to do at once (concurrency_limit), cache, set attempt_timeout",
    "p99": "set attempt_timeout, hedge reads (retry.hedge), shorten the queue of concurrency_limit",
    "throughput": "more workers of the app or the sidecar, or cache more: the rate was not answered",
    "amplification": "set retry.budget, and a circuit_breaker; share calls by a cache",
    "provider_calls": "cache the calls, classify quota answers, pace them: docs/pacing.md",
    "hit_ratio": "look at the cache key (explain), longer ttl, stale_while_revalidate: docs/cache.md",
    "degraded": "longer stale_if_error, a second upstream in the fallback: docs/degraded.md",
    "wrong": "classify what the app makes up as degraded: docs/degraded.md",
    "recovery": "shorter circuit_breaker.open_for and open_max, more half_open_probes",
    "memory": "smaller cache.memory, limits.connections, limits.body",
    "leaked_connections": "a client that stays (limits.idle ends it when it says nothing), or a bug",
    "leaked_permits": "set deadline and idle on the routes: something waits for an upstream without end",
    "leaked_tasks": "a bug of the sidecar, if it grows with the load: compare two runs, and file an issue",
    "leaked_fds": "a bug of the sidecar, if it grows with the load: compare two runs, and file an issue",
    "leaked_memory": "smaller cache.memory; if it grows with the length of the load, file an issue",
    "success": "see what failed under causes; run the drill of that fault",
    "failover": "run `sidecar drill app-outage`: retry and cache.stale_if_error bridge an outage",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run came to. None: not measured. Times are seconds, memory bytes."""

    requests: int = 0
    availability: float | None = None
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    throughput: float | None = None
    amplification: float | None = None
    provider_calls: int | None = None
    hit_ratio: float | None = None
    degraded: float | None = None
    wrong: float | None = None
    recovery: float | None = None
    memory: int | None = None
    leaks: Mapping[str, int] | None = None
    """By how much what the sidecar holds has grown (`figures.Held`)."""


@dataclass(frozen=True, slots=True)
class Point:
    """One thing that had to hold."""

    name: str
    limit: float
    measured: float | None
    held: bool
    mend: str = ""
    """What to do about it, where it did not hold."""


LEAST: Final = ("availability", "throughput", "hit_ratio")
"""Their limits are the least that will do, all other limits the most."""


def judged(asserts: Asserts, measured: Measured) -> list[Point]:
    """A point for each limit, in the order of the keys. What could not be measured does not hold."""
    points: list[Point] = []
    for name in type(asserts).model_fields:
        limit = getattr(asserts, name)
        if limit is None:
            continue
        if isinstance(limit, Leaks):
            points += _leaks(limit, measured.leaks)
            continue
        value = getattr(measured, name)
        held = value is not None and (value >= limit if name in LEAST else value <= limit)
        points.append(Point(name, limit, value, held, _mend(name, value, held=held)))
    return points


def _mend(name: str, value: float | None, *, held: bool) -> str:
    if value is None:
        return "no figure is no proof: give --admin, or leave the limit out; an aborted run lacks some"
    return "" if held else MENDS[name]


def _leaks(allowed: Leaks, found: Mapping[str, int] | None) -> Iterator[Point]:
    for kind in Held._fields:
        limit = getattr(allowed, kind)
        value = None if found is None else found[kind]
        held = value is not None and value <= limit
        name = f"leaked_{kind}"
        yield Point(name, limit, value, held, _mend(name, value, held=held))


def recovery(timeline: Sequence[Mapping[str, Any]], mended: float) -> float:
    """Seconds from `mended` (from the start) to the end of the last second that was not well; 0: at once."""
    bad = [
        at + 1.0
        for at, second in enumerate(timeline)
        if at + 1.0 > mended and second["due"] and second["fine"] < WELL * second["due"]
    ]
    return max(0.0, max(bad) - mended) if bad else 0.0


def throughput(timeline: Sequence[Mapping[str, Any]], begin: float, end: float) -> float:
    """Expected answers a second to what was due in whole seconds between the two."""
    first, last = math.ceil(begin - 1e-6), math.floor(end + 1e-6)
    seconds = timeline[first:last]
    if not seconds:
        return 0.0
    return sum(int(second["fine"]) for second in seconds) / (last - first)


@dataclass(frozen=True, slots=True)
class Readiness:
    """The guide's readiness for production."""

    score: float
    """Of 100."""
    verdict: str
    points: list[Point] = field(default_factory=list)
    tests: str = ""
    """The guide's word for the share of scenarios that passed."""


REQUIRED: Final[Mapping[str, float]] = {
    "throughput": 500.0,
    "p95": 2.0,
    "memory": 2.0 * 2**30,
    "success": 0.95,
    "failover": 1.0,
}


def readiness(
    runs: Sequence[tuple[Status, Measured]], drills: Mapping[str, Status], tests: Sequence[Status]
) -> Readiness:
    """20 points each for throughput, p95, memory, success and failover, as far as each is reached.

    `runs` are loads without faults, `drills` those with, by name. What was not measured has no points.
    """
    known = [measured for _, measured in runs]
    requests = sum(it.requests for it in known)
    fine = sum(it.requests * (it.availability or 0.0) for it in known)
    values: dict[str, float | None] = {
        "throughput": max((it.throughput or 0.0 for it in known), default=None),
        "p95": max((it.p95 for it in known if it.p95 is not None), default=None),
        "memory": max((it.memory for it in known if it.memory is not None), default=None),
        "success": fine / requests if requests else None,
        "failover": sum(it == "passed" for it in drills.values()) / len(drills) if drills else None,
    }
    missed = [name for name, status in drills.items() if status != "passed"]
    points, score = [], 0.0
    for name, limit in REQUIRED.items():
        value = values[name]
        least = name in ("throughput", "success", "failover")
        reached = 0.0
        if value is not None:
            reached = min(1.0, value / limit if least else limit / max(value, 1e-9))
        score += 20.0 * reached
        mend = "" if reached >= 1.0 else MENDS[name]
        if name == "failover" and missed:
            mend = f"run alone what did not pass, and mend what it says: sidecar drill {', '.join(missed)}"
        points.append(Point(name, limit, value, reached >= 1.0, mend))
    passed = sum(it == "passed" for it in tests) / len(tests) if tests else 0.0
    return Readiness(round(score, 1), _word(score, _READY), points, _word(100 * passed, _TESTS))


_READY: Final = ((90, "PRODUCTION_READY"), (75, "MOSTLY_READY"), (50, "NEEDS_OPTIMIZATION"), (0, "NOT_READY"))
_TESTS: Final = ((95, "EXCELLENT"), (85, "GOOD"), (70, "ACCEPTABLE"), (0, "NEEDS_IMPROVEMENT"))


def _word(value: float, words: Sequence[tuple[int, str]]) -> str:
    return next(word for least, word in words if value >= least)

"""What a worker tells the lead of itself: its counts, and what its live objects say at that moment."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.upstream_cells import BreakerCells, PaceCells, UpstreamCells

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sidecar.decisions.rollout import Tally
    from sidecar.telemetry.access_lines import Record


@dataclass(slots=True)
class StillLimit:
    """A concurrency limit as it was."""

    limit: int = 0
    in_flight: int = 0


@dataclass(slots=True)
class StillQueue:
    waiting: int = 0


class StillBuckets:
    """How many clients were remembered."""

    __slots__ = ("count",)

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


class StillBudget:
    """A retry budget as it was."""

    __slots__ = ("left",)

    def __init__(self, left: float = 0.0) -> None:
        self.left = left

    def available(self, _: float) -> float:
        return self.left


class StillPacer:
    """A pacer as it was; times go on."""

    __slots__ = ("held_until", "left", "rate")

    def __init__(
        self, rate: float | None = None, left: float | None = None, held_until: float | None = None
    ) -> None:
        self.rate = rate
        self.left = left
        self.held_until = held_until
        """Monotonic seconds; None: nothing is held."""

    def pace(self, _: float) -> float | None:
        return self.rate

    def remaining(self, _: float) -> float | None:
        return self.left

    def held_for(self, now: float) -> float | None:
        return None if self.held_until is None else max(self.held_until - now, 0.0)


@dataclass(slots=True)
class Report:
    """Of one worker."""

    metrics: Metrics
    rest: Sequence[Metric] = ()
    """Families of what is no cell: the cache, the Redis, the log, the event loop."""
    cache: Mapping[str, Any] = field(default_factory=dict)
    """As `GET /admin/cache/stats` has it; empty where no route has a cache."""
    faults: Sequence[Mapping[str, Any]] = ()
    records: Sequence[tuple[Record, float]] = ()
    """Requests that are of interest since the last report, with what makes Unix time of their times."""
    trial: tuple[int, Tally, Tally] | None = None
    """The generation under trial, what the old one answered, and what it did."""
    generation: int = 0
    """In force."""
    connections: int = 0
    lag: float = 0.0
    """Seconds by which the event loop was late, at most in the last minute."""


def still(metrics: Metrics, now: float) -> Metrics:
    """A copy that can be sent: what is live in it stands still."""
    for cells in metrics.breakers.values():
        cells.look()
    there = Metrics(metrics.namespace, metrics.bounds)
    there.routes = metrics.routes
    there.listeners = metrics.listeners
    there.dns = metrics.dns
    there.upstreams = {name: _upstream(it) for name, it in metrics.upstreams.items()}
    there.breakers = {name: _breaker(it) for name, it in metrics.breakers.items()}
    there.limits = {name: StillLimit(it.limit, it.in_flight) for name, it in metrics.limits.items()}
    there.queues = {name: StillQueue(it.waiting) for name, it in metrics.queues.items()}
    there.buckets = {name: StillBuckets(len(it)) for name, it in metrics.buckets.items()}
    there.budgets = {name: StillBudget(it.available(now)) for name, it in metrics.budgets.items()}
    there.paces = {name: _pace(it, now) for name, it in metrics.paces.items()}
    return there


def _upstream(cells: UpstreamCells) -> UpstreamCells:
    made = copy.copy(cells)
    if cells.idle is not None:
        made.idle = partial(int, cells.idle())
    return made


def _breaker(cells: BreakerCells) -> BreakerCells:
    made = copy.copy(cells)
    made.tell = None
    return made


def _pace(cells: PaceCells, now: float) -> PaceCells:
    made = copy.copy(cells)
    pacer = cells.pacer
    held = pacer.held_for(now)
    made.pacer = StillPacer(pacer.pace(now), pacer.remaining(now), None if held is None else now + held)
    return made

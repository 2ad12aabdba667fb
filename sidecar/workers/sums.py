"""The figures of several processes as those of one.

Counts and histograms are added up. Each gauge has a rule: what adds up is added (connections, attempts in
flight, bytes), of what is a state the worst is shown (an open breaker, a lag, a Redis that is away), and what
is of the machine or of the lead alone is the lead's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from prometheus_client.core import Metric

from sidecar.decisions.breaker import State
from sidecar.stores.stats import percent
from sidecar.telemetry.histogram import Histogram
from sidecar.telemetry.metrics import Metrics
from sidecar.workers.report import StillBuckets, StillBudget, StillLimit, StillPacer, StillQueue

if TYPE_CHECKING:
    from sidecar.telemetry.upstream_cells import BreakerCells, PaceCells, UpstreamCells

Cells = TypeVar("Cells")

_BADNESS: Final = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}
_OF_LEAD: Final = frozenset({"process_cpu_seconds", "container_"})
"""Counters of the lead alone: it reads those of all processes from the system (`lead.py`)."""
GAUGES: Final[Mapping[str, Any]] = {
    "cache_memory_used_bytes": sum,
    "cache_memory_entries": sum,
    "cache_memory_capacity_bytes": sum,
    "cache_fills": sum,
    "event_loop_lag_seconds": max,
    "event_loop_lag_max_seconds": max,
    "event_loop_tasks": sum,
    "gc_longest_pause_seconds": max,
    "redis_connected": min,
    "redis_latency_seconds": max,
}
"""What is made of a gauge that is no cell, without its namespace; one that is not listed is the lead's."""


# -- cells -------------------------------------------------------------------------------------------


def total(into: Metrics, parts: Sequence[Metrics], gone: Metrics | None, now: float) -> None:
    """Puts the sum of `parts` into `into`, whose names are then those of the parts.

    `gone` are those counts of processes that are no more; their gauges are not counted.
    """
    counted = [*parts, gone] if gone is not None else list(parts)
    for table in ("routes", "listeners"):
        cells = _by_name(counted, table, parts)
        setattr(into, table, {name: added(its) for name, its in cells.items()})
    into.dns = added([it.dns for it in counted])
    into.upstreams = {name: _upstream(its) for name, its in _by_name(counted, "upstreams", parts).items()}
    into.breakers = {name: _breaker(its, now) for name, its in _by_name(counted, "breakers", parts).items()}
    into.paces = {name: _pace(its, now) for name, its in _by_name(counted, "paces", parts).items()}
    into.limits = {
        name: StillLimit(sum(it.limit for it in its), sum(it.in_flight for it in its))
        for name, its in _by_name(parts, "limits").items()
    }
    into.queues = {
        name: StillQueue(sum(it.waiting for it in its)) for name, its in _by_name(parts, "queues").items()
    }
    # They tell each other of their clients: each knows nearly all.
    into.buckets = {
        name: StillBuckets(max(len(it) for it in its)) for name, its in _by_name(parts, "buckets").items()
    }
    into.budgets = {
        name: StillBudget(sum(it.available(now) for it in its))
        for name, its in _by_name(parts, "budgets").items()
    }


def retired(gone: Metrics | None, last: Metrics) -> Metrics:
    """`gone`, and the last report of one more process that is no more."""
    for cells in last.listeners.values():
        cells.active = 0
    for upstream in last.upstreams.values():
        upstream.idle = None
    last.limits, last.queues, last.buckets, last.budgets = {}, {}, {}, {}
    for pace in last.paces.values():
        pace.pacer = StillPacer()
    if gone is None:
        return last
    whole = Metrics(last.namespace, last.bounds)
    total(whole, [gone, last], None, 0.0)
    return whole


def _by_name(
    parts: Sequence[Metrics], table: str, known: Sequence[Metrics] | None = None
) -> dict[str, list[Any]]:
    """The cells of all parts by name; of names that `known` has, if it is given."""
    found: dict[str, list[Any]] = {}
    if known is not None:
        found = {name: [] for part in known for name in getattr(part, table)}
    for part in parts:
        for name, cells in getattr(part, table).items():
            if known is None:
                found.setdefault(name, []).append(cells)
            elif name in found:
                found[name].append(cells)
    return found


def added(cells: Sequence[Cells]) -> Cells:
    """Cells of one kind as one: integers, counts by reason and histograms are added up, names kept."""
    first = cells[0]
    kind: Any = type(first)
    whole = kind.__new__(kind)
    for name in kind.__slots__:
        setattr(whole, name, _value([getattr(it, name) for it in cells]))
    return whole  # type: ignore[no-any-return] # of the kind that it was made from


def _value(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, bool):
        return any(values)
    if isinstance(first, (int, float)):
        return sum(values)
    if isinstance(first, Histogram):
        return _histogram(values)
    if isinstance(first, list):
        return [sum(column) for column in zip(*values, strict=True)]
    if isinstance(first, dict):
        # In the order of the first that has each: rows of a scrape do not change places.
        names = dict.fromkeys(name for each in values for name in each)
        return {name: _value([each[name] for each in values if name in each]) for name in names}
    return first


def _histogram(parts: list[Histogram]) -> Histogram:
    whole = Histogram.sum_of(parts)
    whole.exemplars = [
        max((seen for seen in column if seen is not None), key=lambda it: it[2], default=None)
        for column in zip(*(it.exemplars for it in parts), strict=True)
    ]
    return whole


def _upstream(parts: Sequence[UpstreamCells]) -> UpstreamCells:
    whole = added(parts)
    idle = [it.idle() for it in parts if it.idle is not None]
    whole.idle = partial(int, sum(idle)) if idle else None
    return whole


def _breaker(parts: Sequence[BreakerCells], now: float) -> BreakerCells:
    """That of the process where it looks worst; entries are added up."""
    worst = max(parts, key=lambda it: (_BADNESS[it.breaker.state(now)], it.breaker.retry_after(now)))
    whole = added(parts)
    whole.breaker, whole.mode = worst.breaker, worst.mode
    whole._seen = worst._seen  # noqa: SLF001 # it goes with the breaker
    whole.tell = None
    return whole


def _pace(parts: Sequence[PaceCells], now: float) -> PaceCells:
    """Each has its part of the rate; what the provider has left is the same for all."""
    whole = added(parts)
    rates = [it for part in parts if (it := part.pacer.pace(now)) is not None]
    left = [it for part in parts if (it := part.pacer.remaining(now)) is not None]
    held = [it for part in parts if (it := part.pacer.held_for(now)) is not None]
    whole.pacer = StillPacer(
        sum(rates) if rates else None,
        min(left) if left else None,
        now + max(held) if held else None,
    )
    return whole


# -- families ----------------------------------------------------------------------------------------


def merged(namespace: str, own: Iterable[Metric], others: Sequence[Sequence[Metric]]) -> Iterable[Metric]:
    """The families of the lead, with those of the others added by their rules."""
    theirs: dict[str, list[Metric]] = {}
    for families in others:
        for family in families:
            theirs.setdefault(family.name, []).append(family)
    for family in own:
        found = theirs.pop(family.name, [])
        yield _family(namespace, family, found) if found else family
    # What the lead has none of: the first has it, the others are added.
    for found in theirs.values():
        yield _family(namespace, found[0], found[1:])


def _family(namespace: str, first: Metric, others: Sequence[Metric]) -> Metric:
    name = first.name.removeprefix(f"{namespace}_")
    rule: Any
    if first.type == "counter":
        rule = None if name.startswith(tuple(_OF_LEAD)) else sum
    else:
        rule = GAUGES.get(name)
    if rule is None:
        return first
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], list[Any]] = {}
    for family in (first, *others):
        for sample in family.samples:
            samples.setdefault((sample.name, tuple(sorted(sample.labels.items()))), []).append(sample)
    whole = Metric(first.name, first.documentation, first.type, first.unit)
    whole.samples = [its[0]._replace(value=rule(it.value for it in its)) for its in samples.values()]
    return whole


def retired_families(namespace: str, gone: Sequence[Metric], last: Sequence[Metric]) -> list[Metric]:
    """Counters of processes that are no more; their gauges go with them."""
    counters = [it for it in last if it.type == "counter"]
    return list(merged(namespace, counters, [gone])) if gone else counters


# -- the cache's page --------------------------------------------------------------------------------


def cache_stats(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`GET /admin/cache/stats` of several: numbers are added, times are the longest, connected means all."""
    whole: dict[str, Any] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        values = [part[name] for part in parts if part.get(name) is not None]
        if not values:
            whole[name] = None
        elif isinstance(values[0], Mapping):
            whole[name] = cache_stats(values)
        elif isinstance(values[0], bool):
            whole[name] = all(values)
        elif isinstance(values[0], (int, float)):
            whole[name] = max(values) if name.endswith("_ms") else sum(values)
        else:
            whole[name] = next((it for it in values if it), values[0])
    if "hit_rate_percent" in whole:
        whole["hit_rate_percent"] = percent(whole["hits"], whole["hits"] + whole["misses"])
    return whole

"""What a sidecar says of itself in its metrics. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

Metrics = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""By name and labels."""

ANSWERED: Final = ("hit", "stale", "updating", "revalidated", "collapsed")
"""Outcomes of the cache in which the app was not asked, or by others only."""
_PERMITS: Final = ("_concurrency_in_flight", "_concurrency_queue_length", "_cache_fills", "_batch_in_flight")


class Held(NamedTuple):
    """What a sidecar holds at a moment: idle, and with nothing leaked, the same before a load and after."""

    connections: int
    """Of clients, on ingress and egress."""
    permits: int
    """Attempts in flight or waiting for their turn, fills of the cache, lines of batches."""
    tasks: int
    """Of its event loop."""
    fds: int
    """Open files and sockets; kept connections to upstreams, which end by themselves, are left out."""
    memory: int
    """Resident bytes."""

    def more_than(self, before: Held) -> dict[str, int]:
        """By how much each has grown."""
        return {name: max(0, now - then) for name, now, then in zip(self._fields, self, before, strict=True)}


def held(metrics: Metrics) -> Held | None:
    """None: the metrics are not those of a sidecar."""
    tasks, fds, memory = (
        [value for _, value in _named(metrics, name)]
        for name in ("_event_loop_tasks", "_process_open_fds", "_process_resident_memory_bytes")
    )
    if not (tasks and fds and memory):
        return None
    clients = _named(metrics, "_connections_active")
    return Held(
        int(sum(value for labels, value in clients if labels.get("listener") != "admin")),
        int(sum(value for name in _PERMITS for _, value in _named(metrics, name))),
        int(sum(tasks)),
        int(sum(fds)) - idle_upstreams(metrics),
        int(max(memory)),
    )


def idle_upstreams(metrics: Metrics) -> int:
    """Connections to upstreams that are kept for the next request."""
    return int(sum(value for _, value in _named(metrics, "_upstream_connections_idle")))


def open_breakers(metrics: Metrics) -> list[str]:
    found = _named(metrics, "_circuit_breaker_state")
    return sorted(labels.get("upstream", labels.get("route", "")) for labels, value in found if value > 0)


def hit_ratio(before: Metrics, after: Metrics) -> float | None:
    """Of the requests of routes with a cache since `before`; those that went past it on purpose left out."""
    counts: dict[str, float] = {}
    for key, value in after.items():
        name, labels = key
        if name.endswith("_cache_operations_total"):
            outcome = dict(labels).get("outcome", "")
            counts[outcome] = counts.get(outcome, 0.0) + value - before.get(key, 0.0)
    counts.pop("bypass", None)
    whole = sum(counts.values())
    return sum(counts.get(it, 0.0) for it in ANSWERED) / whole if whole else None


def _named(metrics: Metrics, ending: str) -> Iterator[tuple[dict[str, str], float]]:
    for (name, labels), value in metrics.items():
        if name.endswith(ending):
            yield dict(labels), value

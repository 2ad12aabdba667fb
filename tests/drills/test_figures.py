"""What is read from a sidecar's metrics."""

from __future__ import annotations

from sidecar.drills.figures import Held, Metrics, held, hit_ratio, open_breakers


def metrics(**values: float) -> Metrics:
    """By name; what follows two underscores is the value of a label: `listener` of connections, else `x`."""
    found = {}
    for key, value in values.items():
        name, _, label = key.partition("__")
        kind = {"connections_active": "listener", "cache_operations_total": "outcome"}.get(name, "upstream")
        found[f"nextvision_{name}", frozenset({(kind, label)} if label else ())] = value
    return found


IDLE = {
    "event_loop_tasks": 12,
    "process_open_fds": 30,
    "process_resident_memory_bytes": 1000,
    "connections_active__admin": 1,
}


def test_what_is_held() -> None:
    """Clients but for the admin listener's, permits of all kinds, and files without kept connections."""
    busy = metrics(
        **IDLE,
        connections_active__ingress=3,
        connections_active__egress=2,
        concurrency_in_flight__app=4,
        concurrency_queue_length__app=1,
        cache_fills=1,
        upstream_connections_idle__app=7,
    )
    assert held(busy) == Held(connections=5, permits=6, tasks=12, fds=23, memory=1000)
    assert held(metrics(**IDLE)) == Held(0, 0, 12, 30, 1000)
    assert held({}) is None


def test_growth_is_no_less_than_nothing() -> None:
    """What shrank did not leak, and does not make up for what grew."""
    assert Held(3, 0, 10, 31, 900).more_than(Held(1, 0, 12, 30, 1000)) == {
        "connections": 2,
        "permits": 0,
        "tasks": 0,
        "fds": 1,
        "memory": 0,
    }


def test_the_hit_ratio_is_of_the_time_between() -> None:
    """What was counted before does not count, nor what went past the cache on purpose."""
    before = metrics(cache_operations_total__hit=100, cache_operations_total__miss=100)
    after = metrics(
        cache_operations_total__hit=102,
        cache_operations_total__collapsed=1,
        cache_operations_total__miss=101,
        cache_operations_total__bypass=50,
    )
    assert hit_ratio(before, after) == 0.75
    assert hit_ratio(before, before) is None


def test_breakers_that_are_not_closed() -> None:
    """By upstream."""
    found = metrics(circuit_breaker_state__b=2, circuit_breaker_state__a=1, circuit_breaker_state__c=0)
    assert open_breakers(found) == ["a", "b"]

"""What `/metrics` says of what policies have learnt: breakers, limits, budgets, quotas."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from sidecar.telemetry.families import Families, by_reason
from sidecar.telemetry.metrics import Metrics

BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}


def policy_families(make: Families, metrics: Metrics) -> Iterator[Metric]:
    now = make.clock.now()
    for cells in metrics.breakers.values():
        cells.look()
    yield make.gauge(
        "circuit_breaker_state",
        "State of the circuit breaker: 0 closed, 1 half-open, 2 open.",
        ("upstream",),
        (
            ((name,), BREAKER_STATES[cells.breaker.state(now).value])
            for name, cells in metrics.breakers.items()
        ),
    )
    yield make.gauge(
        "circuit_breaker_shadow",
        "1 where the circuit breaker is in shadow mode: whatever its state, it refuses nothing.",
        ("upstream",),
        (((name,), cells.mode == "shadow") for name, cells in metrics.breakers.items()),
    )
    yield make.counter(
        "circuit_breaker_transitions",
        "Times the circuit breaker entered a state.",
        ("upstream", "to"),
        by_reason((name, cells.entered) for name, cells in metrics.breakers.items()),
    )
    yield make.gauge(
        "concurrency_limit",
        "Attempts that may be in flight at once.",
        ("upstream",),
        (((name,), limit.limit) for name, limit in metrics.limits.items()),
    )
    yield make.gauge(
        "concurrency_in_flight",
        "Attempts in flight; one ends with its response body.",
        ("upstream",),
        (((name,), limit.in_flight) for name, limit in metrics.limits.items()),
    )
    yield make.gauge(
        "concurrency_queue_length",
        "Attempts that wait for their turn.",
        ("upstream",),
        (((name,), queue.waiting) for name, queue in metrics.queues.items()),
    )
    yield make.gauge(
        "rate_limit_buckets",
        "Clients whose rate is remembered, by route; `all` is what routes count together.",
        ("route",),
        (((name,), len(buckets)) for name, buckets in metrics.buckets.items()),
    )
    yield make.gauge(
        "retry_budget_available",
        "Retries that the budget would allow now.",
        ("upstream",),
        (((name,), budget.available(now)) for name, budget in metrics.budgets.items()),
    )


def pace_families(make: Families, metrics: Metrics) -> Iterator[Metric]:
    paces = metrics.paces
    now = make.clock.now()
    pacers = [(scope, cells.pacer) for scope, cells in paces.items()]
    for name, text, values in (
        (
            "pace_rate",
            "Requests a second that the quota allows in an even flow.",
            [(scope, pacer.pace(now)) for scope, pacer in pacers],
        ),
        (
            "quota_remaining",
            "Requests left of the quota that the provider states.",
            [(scope, pacer.remaining(now)) for scope, pacer in pacers],
        ),
        (
            "pace_held_seconds",
            "Seconds until a request may find out whether the quota is back.",
            [(scope, pacer.held_for(now)) for scope, pacer in pacers],
        ),
    ):
        known = [((scope,), value) for scope, value in values if value is not None]
        yield make.gauge(name, text, ("upstream",), known)
    yield make.gauge(
        "pace_held",
        "1 while nothing is sent because the quota is used up.",
        ("upstream",),
        [((scope,), pacer.held_for(now) is not None) for scope, pacer in pacers],
    )
    yield make.histogram(
        "pace_wait_seconds",
        "Time that requests waited for their turn; those that did not wait are left out.",
        ("upstream", "class"),
        (
            ((scope, kind), waits)
            for scope, cells in paces.items()
            for kind, waits in (("interactive", cells.interactive), ("batch", cells.batch))
        ),
    )

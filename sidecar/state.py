"""What policies learn of an upstream, and who owns it: breakers, budgets, limits.

The key is the upstream (or the route, where a policy is scoped so) with the settings: a reload that
changes neither keeps what was learnt, and a changed setting starts afresh.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import TYPE_CHECKING

from sidecar.decisions.backoff import Backoff
from sidecar.decisions.breaker import Breaker
from sidecar.decisions.concurrency import FixedLimit, Limit
from sidecar.decisions.gcra import Buckets
from sidecar.decisions.gradient import AdaptiveLimit
from sidecar.decisions.health import Health
from sidecar.decisions.pacer import Pacer
from sidecar.decisions.priority import Priority
from sidecar.decisions.quantile import Quantile
from sidecar.decisions.retry_budget import UNLIMITED, Budget, RetryBudget
from sidecar.faults import Faults
from sidecar.pacing import Turns
from sidecar.queueing import Gate
from sidecar.stores.redis_buckets import SharedBuckets

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.schema import CircuitBreaker, ConcurrencyLimit, Pace, RateLimit, Retry
    from sidecar.stores.redis_nodes import Nodes
    from sidecar.telemetry.metrics import BreakerCells, Metrics, PaceCells


class State:
    """One per process; survives reloads."""

    def __init__(self, metrics: Metrics, clock: Clock, shared: Nodes | None = None) -> None:
        """`shared` is the Redis of all replicas, where there is one."""
        self._metrics = metrics
        self._clock = clock
        self._shared = shared
        self._buckets: dict[Hashable, Buckets] = {}
        self._breakers: dict[Hashable, Breaker] = {}
        self._budgets: dict[Hashable, Budget] = {}
        self._gates: dict[Hashable, Gate] = {}
        self._backoffs: dict[Hashable, Backoff] = {}
        self._healths: dict[Hashable, Health] = {}
        self._latencies: dict[Hashable, Quantile] = {}
        self.faults = Faults(clock)
        self._turns: dict[Hashable, Turns] = {}
        self._labels: dict[tuple[str, str], Hashable] = {}

    def _label(self, kind: str, scope: str, route: str, settings: Hashable) -> str:
        """The name that metrics show. The upstream's, unless other settings for it have that name."""
        holder = self._labels.setdefault((kind, scope), settings)
        return scope if holder == settings else f"{scope}/{route}"

    def breaker(
        self, upstream: str, route: str, settings: CircuitBreaker
    ) -> tuple[str, Breaker, BreakerCells]:
        """The breaker of an upstream, or of one route to it; its name, and what counts its transitions."""
        scope = upstream if settings.scope == "upstream" else f"{upstream}/{route}"
        key = (scope, settings)
        breaker = self._breakers.get(key)
        if breaker is None:
            slow = settings.slow_call
            breaker = self._breakers[key] = Breaker(
                failure_ratio=settings.failure_ratio,
                minimum_calls=settings.minimum_calls,
                window=settings.window,
                consecutive=settings.consecutive,
                slow_ratio=slow.ratio if slow is not None else None,
                slow_over=slow.over if slow is not None else None,
                open_for=settings.open_for,
                open_max=settings.open_max,
                half_open_probes=settings.half_open_probes,
            )
        label = self._label("breaker", scope, route, settings)
        return label, breaker, self._metrics.watch_breaker(label, breaker, settings.mode)

    def budget(self, upstream: str, route: str, settings: Retry) -> Budget:
        if settings.budget is None:
            return UNLIMITED
        key = (upstream, settings.budget)
        budget = self._budgets.get(key)
        if budget is None:
            budget = self._budgets[key] = RetryBudget(settings.budget.ratio, settings.budget.min_per_second)
        self._metrics.watch_budget(self._label("budget", upstream, route, settings.budget), budget)
        return budget

    def backoff(self, upstream: str, settings: Retry) -> Backoff:
        key = (upstream, settings.backoff)
        backoff = self._backoffs.get(key)
        if backoff is None:
            plan = settings.backoff
            backoff = self._backoffs[key] = Backoff(plan.strategy, plan.base, plan.max)
        return backoff

    def latency(self, upstream: str, route: str, share: float) -> Quantile:
        """The estimate of a quantile of how long the attempts of a route at an upstream take."""
        key = (upstream, route, share)
        known = self._latencies.get(key)
        if known is None:
            known = self._latencies[key] = Quantile(share)
        return known

    def buckets(self, route: str, settings: RateLimit) -> tuple[Buckets, SharedBuckets | None]:
        """The buckets of this replica, and those of all replicas where the settings ask for them.

        These are None without a Redis. Settings that only say what to do then share the buckets.
        """
        scope = route if settings.scope == "route" else "all"
        counts = (scope, settings.rate, settings.burst, settings.key, settings.mode)
        buckets = self._buckets.get(counts)
        if buckets is None:
            buckets = self._buckets[counts] = Buckets(settings.rate, settings.burst)
        self._metrics.watch_buckets(self._label("buckets", scope, route, counts), buckets)
        if not settings.shared or self._shared is None:
            return buckets, None
        # Replicas that are not configured alike, as during a rollout, do not count together.
        name = f"{scope}:{hashlib.sha256(repr(counts).encode()).hexdigest()[:8]}"
        return buckets, SharedBuckets(self._shared, name, buckets.interval, buckets.tolerance)

    def gate(self, upstream: str, route: str, settings: ConcurrencyLimit) -> Gate:
        """What routes to an upstream share, whatever their `priority`; but none in shadow mode."""
        shared = settings.model_copy(update={"priority": "normal"})
        key = (upstream, shared)
        gate = self._gates.get(key)
        if gate is None:
            limit: Limit
            if settings.adaptive is not None:
                rule = settings.adaptive
                limit = AdaptiveLimit(rule.initial, rule.min, rule.max)
            else:
                assert settings.max is not None
                limit = FixedLimit(settings.max)
            gate = self._gates[key] = Gate(limit, settings.queue, settings.queue_size, self._clock)
        gate.limit.keep_for(Priority[settings.priority.upper()])
        label = self._label("limit", upstream, route, shared)
        self._metrics.watch_limit(label, gate.limit)
        self._metrics.watch_queue(label, gate)
        return gate

    def health(self, upstream: str, route: str) -> Health:
        """How the upstream does, as the fills of one route's cache have seen it."""
        return self._healths.setdefault((upstream, route), Health())

    def turns(self, upstream: str, route: str, settings: Pace) -> tuple[Turns, PaceCells]:
        """Turns at an upstream, and what counts them; how long a route waits for one is its own affair."""
        quota = (settings.rate, settings.burst, settings.learn, settings.hold)
        key = (upstream, quota)
        turns = self._turns.get(key)
        if turns is None:
            rate, burst, learn, hold = quota
            turns = self._turns[key] = Turns(Pacer(rate, burst, learn=learn, hold=hold), self._clock)
        label = self._label("pace", upstream, route, quota)
        return turns, self._metrics.watch_pace(label, turns.pacer)

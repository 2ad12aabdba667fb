"""What policies learn of an upstream, and who owns it: breakers, budgets, limits.

The key is the upstream (or the route, where a policy is scoped so) with the settings: a reload that
changes neither keeps what was learnt, and a changed setting starts afresh.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from sidecar.decisions.backoff import Backoff
from sidecar.decisions.breaker import Breaker
from sidecar.decisions.concurrency import FixedLimit
from sidecar.decisions.health import Health
from sidecar.decisions.quantile import Quantile
from sidecar.decisions.retry_budget import UNLIMITED, Budget, RetryBudget
from sidecar.queueing import Gate

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config.schema import CircuitBreaker, ConcurrencyLimit, Retry
    from sidecar.telemetry.metrics import BreakerCells, Metrics


class State:
    """One per process; survives reloads."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._breakers: dict[Hashable, Breaker] = {}
        self._budgets: dict[Hashable, Budget] = {}
        self._gates: dict[Hashable, Gate] = {}
        self._backoffs: dict[Hashable, Backoff] = {}
        self._healths: dict[Hashable, Health] = {}
        self._latencies: dict[Hashable, Quantile] = {}
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
        return label, breaker, self._metrics.watch_breaker(label, breaker)

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

    def gate(self, upstream: str, route: str, settings: ConcurrencyLimit) -> Gate:
        key = (upstream, settings)
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate(FixedLimit(settings.max), settings.queue, self._clock)
        self._metrics.watch_limit(self._label("limit", upstream, route, settings), gate.limit)
        return gate

    def health(self, upstream: str, route: str) -> Health:
        """How the upstream does, as the fills of one route's cache have seen it."""
        return self._healths.setdefault((upstream, route), Health())

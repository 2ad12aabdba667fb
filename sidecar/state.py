"""What policies learn of an upstream, and who owns it: breakers, budgets, limits.

The key is the upstream and where it is (or the route, where a policy is scoped so) with the settings: a
reload that changes neither keeps what was learnt, and a changed setting starts afresh. What no generation
uses any more is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

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


class Hints(Protocol):
    """What the workers of one sidecar tell each other (`workers/hints.py`)."""

    def buckets(self, name: str, rate: float, burst: int) -> Buckets: ...
    def watch(self, label: str, cells: BreakerCells) -> None: ...


T = TypeVar("T")

_SHOWN: Final = {
    "breaker": ("breakers",),
    "budget": ("budgets",),
    "buckets": ("buckets",),
    "limit": ("limits", "queues"),
    "pace": ("paces",),
    "route": ("routes",),
    "upstream": ("upstreams",),
}
"""What metrics show of each kind, by the names of their tables."""


@dataclass(slots=True)
class Use:
    """What one generation uses, and the names by which metrics show it."""

    suffix: str = ""
    """Of the names of what no other generation uses: so a candidate's breaker is told from the other."""
    places: dict[str, Hashable] = field(default_factory=dict)
    """Where upstreams are, by their names: another server is another upstream, whatever its name."""
    kept: set[tuple[str, Hashable]] = field(default_factory=set)
    shown: set[tuple[str, str]] = field(default_factory=set)
    labels: dict[tuple[str, str], Hashable] = field(default_factory=dict)

    off: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Features that are switched off and that a route asks for, by its name."""

    def place(self, upstream: str) -> Hashable:
        return self.places.get(upstream, upstream)


class State:
    """One per process; survives reloads."""

    def __init__(
        self, metrics: Metrics, clock: Clock, shared: Nodes | None = None, hints: Hints | None = None
    ) -> None:
        """`shared` is the Redis of all replicas, `hints` go to the other workers, where there are such."""
        self._metrics = metrics
        self._hints = hints
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
        self._paced: dict[str, Turns] = {}
        self._tables: dict[str, MutableMapping[Hashable, Any]] = {
            "buckets": self._buckets,
            "breaker": self._breakers,
            "budget": self._budgets,
            "limit": self._gates,
            "backoff": self._backoffs,
            "health": self._healths,
            "latency": self._latencies,
            "pace": self._turns,
        }
        self._use = Use()
        self._others: tuple[Use, ...] = ()

    # -- generations ---------------------------------------------------------------------------

    def begin(self, use: Use) -> None:
        """What is asked for from now on is used by `use`, until the next call."""
        self._use = use

    def keep(self, uses: Iterable[Use]) -> None:
        """Drops what none of these uses, and what metrics show of it."""
        self._others = tuple(uses)
        kept = frozenset[tuple[str, Hashable]]().union(*(use.kept for use in self._others))
        for kind, table in self._tables.items():
            for key in [key for key in table if (kind, key) not in kept]:
                del table[key]
        shown = frozenset[tuple[str, str]]().union(*(use.shown for use in self._others))
        for kind, names in _SHOWN.items():
            for name in names:
                table = getattr(self._metrics, name)
                for label in [label for label in table if (kind, label) not in shown]:
                    del table[label]
        for label in [label for label in self._paced if ("pace", label) not in shown]:
            del self._paced[label]

    def show(self, kind: str, label: str) -> None:
        """The generation that is compiled shows its own under `label`, as `_SHOWN` names the kinds."""
        self._use.shown.add((kind, label))

    def switched_off(self, route: str) -> tuple[str, ...]:
        """What feature flags take from a route of the generation that is compiled."""
        return self._use.off.get(route, ())

    def _keep(self, kind: str, table: MutableMapping[Hashable, T], key: Hashable, make: Callable[[], T]) -> T:
        """What `key` leads to, made where it is not there; the generation that is compiled uses it."""
        self._use.kept.add((kind, key))
        known = table.get(key)
        if known is None:
            known = table[key] = make()
        return known

    def _label(self, kind: str, scope: str, route: str, settings: Hashable, key: Hashable) -> str:
        """The name that metrics show. The upstream's, unless other settings for it have that name."""
        use = self._use
        holder = use.labels.setdefault((kind, scope), settings)
        label = scope if holder == settings else f"{scope}/{route}"
        if use.suffix and not any((kind, key) in other.kept for other in self._others):
            label += use.suffix
        use.shown.add((kind, label))
        return label

    def breaker(
        self, upstream: str, route: str, settings: CircuitBreaker
    ) -> tuple[str, Breaker, BreakerCells]:
        """The breaker of an upstream, or of one route to it; its name, and what counts its transitions."""
        scope = upstream if settings.scope == "upstream" else f"{upstream}/{route}"
        key = (scope, self._use.place(upstream), settings)
        slow = settings.slow_call
        breaker = self._keep(
            "breaker",
            self._breakers,
            key,
            lambda: Breaker(
                failure_ratio=settings.failure_ratio,
                minimum_calls=settings.minimum_calls,
                window=settings.window,
                consecutive=settings.consecutive,
                slow_ratio=slow.ratio if slow is not None else None,
                slow_over=slow.over if slow is not None else None,
                open_for=settings.open_for,
                open_max=settings.open_max,
                half_open_probes=settings.half_open_probes,
            ),
        )
        label = self._label("breaker", scope, route, settings, key)
        cells = self._metrics.watch_breaker(label, breaker, settings.mode)
        if self._hints is not None:
            self._hints.watch(label, cells)
        return label, breaker, cells

    def budget(self, upstream: str, route: str, settings: Retry) -> Budget:
        rule = settings.budget
        if rule is None:
            return UNLIMITED
        key = (upstream, self._use.place(upstream), rule)
        budget = self._keep(
            "budget", self._budgets, key, lambda: RetryBudget(rule.ratio, rule.min_per_second)
        )
        self._metrics.watch_budget(self._label("budget", upstream, route, rule, key), budget)
        return budget

    def backoff(self, upstream: str, settings: Retry) -> Backoff:
        plan = settings.backoff
        key = (upstream, self._use.place(upstream), plan)
        return self._keep("backoff", self._backoffs, key, lambda: Backoff(plan.strategy, plan.base, plan.max))

    def latency(self, upstream: str, route: str, share: float) -> Quantile:
        """The estimate of a quantile of how long the attempts of a route at an upstream take."""
        key = (upstream, self._use.place(upstream), route, share)
        return self._keep("latency", self._latencies, key, lambda: Quantile(share))

    def buckets(self, route: str, settings: RateLimit) -> tuple[Buckets, SharedBuckets | None]:
        """The buckets of this replica, and those of all replicas where the settings ask for them.

        These are None without a Redis. Settings that only say what to do then share the buckets.
        """
        scope = route if settings.scope == "route" else "all"
        counts = (scope, settings.rate, settings.burst, settings.key, settings.mode)
        hints = self._hints
        # The same in all processes that are configured alike; others, as during a rollout, count apart.
        name = f"{scope}:{hashlib.sha256(repr(counts).encode()).hexdigest()[:8]}"

        def made() -> Buckets:
            if hints is not None:
                return hints.buckets(name, settings.rate, settings.burst)
            return Buckets(settings.rate, settings.burst)

        buckets = self._keep("buckets", self._buckets, counts, made)
        self._metrics.watch_buckets(self._label("buckets", scope, route, counts, counts), buckets)
        if not settings.shared or self._shared is None:
            return buckets, None
        return buckets, SharedBuckets(self._shared, name, buckets.interval, buckets.tolerance)

    def gate(self, upstream: str, route: str, settings: ConcurrencyLimit) -> Gate:
        """What routes to an upstream share, whatever their `priority`; but none in shadow mode."""
        shared = settings.model_copy(update={"priority": "normal"})
        key = (upstream, self._use.place(upstream), shared)

        def made() -> Gate:
            limit: Limit
            if settings.adaptive is not None:
                rule = settings.adaptive
                limit = AdaptiveLimit(rule.initial, rule.min, rule.max)
            else:
                assert settings.max is not None
                limit = FixedLimit(settings.max)
            return Gate(limit, settings.queue, settings.queue_size, self._clock)

        gate = self._keep("limit", self._gates, key, made)
        gate.limit.keep_for(Priority[settings.priority.upper()])
        label = self._label("limit", upstream, route, shared, key)
        self._metrics.watch_limit(label, gate.limit)
        self._metrics.watch_queue(label, gate)
        return gate

    def health(self, upstream: str, route: str) -> Health:
        """How the upstream does, as the fills of one route's cache have seen it."""
        key = (upstream, self._use.place(upstream), route)
        return self._keep("health", self._healths, key, Health)

    def turns(self, upstream: str, route: str, settings: Pace) -> tuple[Turns, PaceCells]:
        """Turns at an upstream, and what counts them; how long a route waits for one is its own affair."""
        quota = (settings.rate, settings.burst, settings.learn, settings.hold)
        key = (upstream, self._use.place(upstream), quota)

        def made() -> Turns:
            rate, burst, learn, hold = quota
            return Turns(Pacer(rate, burst, learn=learn, hold=hold), self._clock)

        turns = self._keep("pace", self._turns, key, made)
        label = self._label("pace", upstream, route, quota, key)
        self._paced[label] = turns
        return turns, self._metrics.watch_pace(label, turns.pacer)

    def paced(self) -> Iterable[tuple[str, Turns]]:
        """Turns by the names that metrics show."""
        return self._paced.items()

"""Checks of the upstreams, from their traffic alone: nobody is called to learn whether a call would succeed.

A call to a provider may cost money, and one that only answers its health path says nothing of the rest. An
upstream is degraded while a circuit breaker of its own is not closed, or while too many attempts of the last
minute failed; one without traffic is as good as known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sidecar.decisions.buckets import histogram_quantile
from sidecar.decisions.verdict import Verdict
from sidecar.telemetry.checks import Check, CheckResult
from sidecar.telemetry.history import UpstreamFigures, upstream_figures

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.history import History
    from sidecar.telemetry.metrics import BreakerCells, Metrics, UpstreamCells

WINDOW: Final = 60.0
"""Seconds whose attempts are judged."""
FAILING: Final = 0.2
"""Share of failed attempts that counts as degraded."""
FEWEST: Final = 10
"""Attempts in the window from which the share is judged: below that it is chance."""

_FAILED: Final = (Verdict.TRANSIENT.value, Verdict.QUOTA.value)
_FAILED_EXTERNAL: Final = (*_FAILED, Verdict.AUTH.value)
"""A provider that refuses the key serves nobody; an app that asks a client to log in is well."""


class UpstreamCheck:
    """One upstream, or a breaker that a route has to itself."""

    required = False

    def __init__(
        self,
        scope: str,
        now: float,
        breaker: BreakerCells | None,
        cells: UpstreamCells | None,
        before: UpstreamFigures,
    ) -> None:
        """`before`: what was counted of `cells` until the window began."""
        self.name = f"upstream:{scope}"
        self._now = now
        self._breaker = breaker
        self._cells = cells
        self._before = before

    def look(self) -> CheckResult:
        facts: dict[str, object] = {}
        reasons = []
        latency = None
        breaker = self._breaker
        if breaker is not None:
            state = breaker.breaker.state(self._now).value
            facts["circuit_breaker"] = state
            if breaker.mode != "enforce":
                facts["mode"] = breaker.mode
            if state != "closed":
                reasons.append(f"its circuit breaker is {state.replace('_', '-')}")
        if self._cells is not None:
            recent = upstream_figures(self._cells).since(self._before)
            attempts = sum(recent.verdicts.values())
            failures = _FAILED_EXTERNAL if self._cells.external else _FAILED
            failed = sum(recent.verdicts.get(verdict, 0) for verdict in failures)
            facts |= {"attempts": attempts, "failed": failed}
            latency = histogram_quantile(0.5, self._cells.bounds, recent.buckets)
            if attempts >= FEWEST and failed >= FAILING * attempts:
                reasons.append(f"{failed} of {attempts} attempts failed in the last minute")
        return CheckResult("degraded" if reasons else "healthy", ", ".join(reasons), latency, facts)


class UpstreamChecks:
    """All of them that there are now."""

    def __init__(self, metrics: Metrics, history: History, clock: Clock) -> None:
        self._metrics = metrics
        self._history = history
        self._clock = clock

    def __call__(self) -> Iterator[Check]:
        metrics = self._metrics
        now = self._clock.now()
        before = self._history.before(WINDOW, now).upstreams
        for scope in {**metrics.upstreams, **metrics.breakers}:
            yield UpstreamCheck(
                scope,
                now,
                metrics.breakers.get(scope),
                metrics.upstreams.get(scope),
                before.get(scope, UpstreamFigures()),
            )

"""What `/metrics` says: the cells read into metric families, in the format that the scraper asks for.

Names follow the Prometheus conventions (base units, `_total` on counters); the two percentages of the
machine keep the names that the app's dashboards and alerts already know.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector as CollectorBase

from sidecar.telemetry.metrics import BOUNDS, Histogram, Metrics

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.access_log import AccessLog
    from sidecar.telemetry.system import System

BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}

_LIMITS = (*(str(bound) for bound in BOUNDS), "+Inf")

Row = tuple[tuple[str, ...], float]


class Collector(CollectorBase):
    """Reads the cells of one process at each scrape."""

    def __init__(
        self, metrics: Metrics, *, clock: Clock, system: System, access_log: AccessLog, version: str
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._system = system
        self._access_log = access_log
        self._version = version
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type: OpenMetrics where `Accept` asks for it, else text."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        yield from self._routes()
        yield from self._upstreams()
        yield from self._dns()
        yield from self._policies()
        yield from self._paces()
        yield from self._listeners()
        yield from self._process()

    # -- families ------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
        family = CounterMetricFamily(f"{self._metrics.namespace}_{name}", text, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        return family

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
        family = GaugeMetricFamily(f"{self._metrics.namespace}_{name}", text, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        return family

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], Histogram]]
    ) -> Metric:
        family = HistogramMetricFamily(f"{self._metrics.namespace}_{name}", text, labels=labels)
        # Exemplars carry the loop's time; at scrape that becomes Unix time.
        epoch = self._clock.wall() - self._clock.now()
        for values, histogram in rows:
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            counts = accumulate(histogram.buckets)
            for limit, count, seen in zip(_LIMITS, counts, histogram.exemplars, strict=True):
                if seen is None:
                    buckets.append((limit, count))
                else:
                    trace_id, seconds, at = seen
                    example = Exemplar(
                        {"trace_id": trace_id.decode("latin-1")}, seconds, round(epoch + at, 3)
                    )
                    buckets.append((limit, count, example))
            family.add_metric(values, buckets, histogram.seconds)
        return family

    # -- what is shown -------------------------------------------------------------------------

    def _routes(self) -> Iterator[Metric]:
        routes = self._metrics.routes
        yield self._counter(
            "api_requests",
            "Requests answered, by route, method and status; 499 is a client that left before its answer.",
            ("route", "method", "status"),
            (
                ((name, method, _status(status)), cell[0])
                for name, cells in routes.items()
                for (method, status), cell in cells.requests.items()
            ),
        )
        yield self._histogram(
            "api_request_duration_seconds",
            "Time from the request's head to the end of its response; upgraded connections are left out.",
            ("route",),
            (((name,), cells.durations) for name, cells in routes.items()),
        )
        yield self._counter(
            "api_errors",
            "Answers the sidecar gave itself because of an error, by route and Sidecar-Error code.",
            ("route", "code"),
            _reasons((name, cells.errors) for name, cells in routes.items()),
        )
        yield self._counter(
            "retries",
            "Attempts that were repeated, by route and by what was wrong with the one before.",
            ("route", "reason"),
            _reasons((name, cells.retries) for name, cells in routes.items()),
        )
        yield self._counter(
            "retries_skipped",
            "Failed attempts that the retry policy did not repeat, by route and by what forbade it.",
            ("route", "reason"),
            _reasons((name, cells.retries_skipped) for name, cells in routes.items()),
        )
        yield self._counter(
            "hedges",
            "Attempts sent beside a slow one, by route and outcome: won, lost (it came too late) or failed.",
            ("route", "outcome"),
            _reasons((name, cells.hedges) for name, cells in routes.items()),
        )
        yield self._counter(
            "cache_operations",
            "Requests of routes with a cache, by route and by what the cache did.",
            ("route", "outcome"),
            _reasons((name, cells.cache) for name, cells in routes.items()),
        )
        yield self._gauge(
            "cache_hit_rate",
            "Share of those requests that were answered from the cache, since the start.",
            ("route",),
            (((name,), _hit_rate(cells.cache)) for name, cells in routes.items() if cells.cache),
        )
        yield self._counter(
            "fallbacks",
            "Requests without a good answer, by route and by what was answered instead.",
            ("route", "rung"),
            _reasons((name, cells.fallbacks) for name, cells in routes.items()),
        )
        for name, text, attribute in (
            (
                "circuit_breaker_rejections",
                "Attempts refused by an open circuit breaker.",
                "breaker_rejections",
            ),
            (
                "concurrency_limit_rejections",
                "Attempts refused because the limit was full.",
                "limit_rejections",
            ),
            (
                "rate_limit_rejections",
                "Requests refused because their client sends too many.",
                "rate_rejections",
            ),
            (
                "rate_limit_unshared",
                "Requests whose shared rate limit could not be asked: what `failure` says was done.",
                "rate_unshared",
            ),
            (
                "responses_aborted",
                "Responses cut off because the body broke after its head went out.",
                "aborts",
            ),
            ("clients_gone", "Requests whose client left before the answer was complete.", "clients_gone"),
        ):
            yield self._counter(
                name,
                text,
                ("route",),
                [((route,), getattr(cells, attribute)) for route, cells in routes.items()],
            )
        yield self._counter(
            "degraded",
            "Answers of the app that were made without an upstream they need, by route and upstream.",
            ("route", "upstream"),
            _reasons((name, cells.degradations) for name, cells in routes.items()),
        )
        yield self._counter(
            "pace_rejections",
            "Attempts refused for want of quota, by route and reason: no turn within the patience or the "
            "deadline; held while it is used up.",
            ("route", "reason"),
            _reasons((name, cells.pace_rejections) for name, cells in routes.items()),
        )
        yield self._counter(
            "shadow_rejections",
            "What policies in shadow mode would have refused, by route and layer.",
            ("route", "layer"),
            _reasons((name, cells.shadow_rejections) for name, cells in routes.items()),
        )
        yield self._counter(
            "faults_injected",
            "Attempts that an injected fault hit, by route and by what it did.",
            ("route", "kind"),
            _reasons((name, cells.faults_injected) for name, cells in routes.items()),
        )
        yield self._gauge(
            "route_info",
            "1 for each route, with the upstream that serves it.",
            ("route", "upstream"),
            (((name, cells.upstream), 1) for name, cells in routes.items()),
        )

    def _upstreams(self) -> Iterator[Metric]:
        upstreams = self._metrics.upstreams
        yield self._counter(
            "upstream_attempts",
            "Attempts at the upstream, by the verdict on each; retries count again.",
            ("upstream", "verdict"),
            (
                ((name, verdict.value), count)
                for name, cells in upstreams.items()
                for verdict, count in cells.attempts().items()
            ),
        )
        yield self._histogram(
            "upstream_attempt_duration_seconds",
            "Time from the start of an attempt to its response headers or its failure.",
            ("upstream",),
            (((name,), Histogram.sum_of(cells.durations.values())) for name, cells in upstreams.items()),
        )
        external = [cells for cells in upstreams.values() if cells.external]
        yield self._counter(
            "external_api_calls",
            "Calls to upstreams of egress policies, by the verdict on each; retries count again.",
            ("upstream", "verdict"),
            (
                ((cells.name, verdict.value), count)
                for cells in external
                for verdict, count in cells.attempts().items()
            ),
        )
        yield self._histogram(
            "external_api_duration_seconds",
            "Time from the start of a call to an external API to its response headers or its failure.",
            ("upstream", "verdict"),
            (
                ((cells.name, verdict.value), durations)
                for cells in external
                for verdict, durations in cells.durations.items()
                if durations.count
            ),
        )
        for name, text, attribute in (
            ("upstream_connections_opened", "Connections opened to the upstream.", "connections_opened"),
            (
                "upstream_connections_reused",
                "Attempts sent on a connection that had served one before.",
                "connections_reused",
            ),
            (
                "upstream_connect_failures",
                "Connections to the upstream that could not be made.",
                "connect_failures",
            ),
        ):
            yield self._counter(
                name,
                text,
                ("upstream",),
                [((upstream,), getattr(cells, attribute)) for upstream, cells in upstreams.items()],
            )
        yield self._gauge(
            "upstream_connections_idle",
            "Connections to the upstream that wait for a request.",
            ("upstream",),
            (((name,), cells.idle()) for name, cells in upstreams.items() if cells.idle is not None),
        )
        yield self._counter(
            "upstream_tls_handshakes",
            "TLS handshakes with the upstream: full, or resumed from the session of one before.",
            ("upstream", "kind"),
            _reasons(
                (name, cells.handshakes)
                for name, cells in upstreams.items()
                if any(cells.handshakes.values())
            ),
        )
        yield self._counter(
            "upstream_tls_failures",
            "TLS handshakes with the upstream that failed, by what was wrong.",
            ("upstream", "fault"),
            _reasons((name, cells.tls_failures) for name, cells in upstreams.items()),
        )

    def _dns(self) -> Iterator[Metric]:
        dns = self._metrics.dns
        yield self._counter(
            "dns_lookups",
            "Names of hosts that the app calls, by how they were resolved: fresh (known), asked, stale (the "
            "DNS failed, the last addresses were used), absent or failed.",
            ("outcome",),
            (((outcome,), count) for outcome, count in dns.lookups.items()),
        )
        yield self._counter(
            "dns_questions",
            "Questions to name servers, by what came of them: answer, absent, refused, invalid, unreachable "
            "or timeout.",
            ("outcome",),
            (((outcome,), count) for outcome, count in dns.questions.items()),
        )

    def _policies(self) -> Iterator[Metric]:
        metrics = self._metrics
        now = self._clock.now()
        for cells in metrics.breakers.values():
            cells.look()
        yield self._gauge(
            "circuit_breaker_state",
            "State of the circuit breaker: 0 closed, 1 half-open, 2 open.",
            ("upstream",),
            (
                ((name,), BREAKER_STATES[cells.breaker.state(now).value])
                for name, cells in metrics.breakers.items()
            ),
        )
        yield self._counter(
            "circuit_breaker_transitions",
            "Times the circuit breaker entered a state.",
            ("upstream", "to"),
            _reasons((name, cells.entered) for name, cells in metrics.breakers.items()),
        )
        yield self._gauge(
            "concurrency_limit",
            "Attempts that may be in flight at once.",
            ("upstream",),
            (((name,), limit.limit) for name, limit in metrics.limits.items()),
        )
        yield self._gauge(
            "concurrency_in_flight",
            "Attempts in flight; one ends with its response body.",
            ("upstream",),
            (((name,), limit.in_flight) for name, limit in metrics.limits.items()),
        )
        yield self._gauge(
            "concurrency_queue_length",
            "Attempts that wait for their turn.",
            ("upstream",),
            (((name,), queue.waiting) for name, queue in metrics.queues.items()),
        )
        yield self._gauge(
            "rate_limit_buckets",
            "Clients whose rate is remembered, by route; `all` is what routes count together.",
            ("route",),
            (((name,), len(buckets)) for name, buckets in metrics.buckets.items()),
        )
        yield self._gauge(
            "retry_budget_available",
            "Retries that the budget would allow now.",
            ("upstream",),
            (((name,), budget.available(now)) for name, budget in metrics.budgets.items()),
        )

    def _paces(self) -> Iterator[Metric]:
        paces = self._metrics.paces
        now = self._clock.now()
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
            yield self._gauge(name, text, ("upstream",), known)
        yield self._gauge(
            "pace_held",
            "1 while nothing is sent because the quota is used up.",
            ("upstream",),
            [((scope,), pacer.held_for(now) is not None) for scope, pacer in pacers],
        )
        yield self._histogram(
            "pace_wait_seconds",
            "Time that requests waited for their turn; those that did not wait are left out.",
            ("upstream", "class"),
            (
                ((scope, kind), waits)
                for scope, cells in paces.items()
                for kind, waits in (("interactive", cells.interactive), ("batch", cells.batch))
            ),
        )

    def _listeners(self) -> Iterator[Metric]:
        listeners = self._metrics.listeners
        for name, text, attribute in (
            ("connections_accepted", "Client connections accepted.", "accepted"),
            (
                "connections_refused",
                "Client connections closed at once: limits.connections was full.",
                "refused",
            ),
            ("bad_requests", "Requests the listener refused before any route was known.", "bad_requests"),
            (
                "connections_intercepted",
                "Connections whose TLS ended here, as a policy file lists their host.",
                "intercepted",
            ),
            ("tls_failures", "Connections that ended before their TLS began.", "tls_failures"),
        ):
            yield self._counter(
                name,
                text,
                ("listener",),
                [((listener,), getattr(cells, attribute)) for listener, cells in listeners.items()],
            )
        yield self._gauge(
            "connections_active",
            "Client connections open now.",
            ("listener",),
            (((name,), cells.active) for name, cells in listeners.items()),
        )

    def _process(self) -> Iterator[Metric]:
        system = self._system
        for name, text, gauge in (
            ("system_cpu_usage_percent", "CPU of the machine in use, 0 to 100.", system.cpu_percent),
            ("system_memory_usage_percent", "Memory of the machine in use, 0 to 100.", system.memory_percent),
            ("process_resident_memory_bytes", "Memory the sidecar holds.", system.process_resident),
            ("process_open_fds", "File descriptors the sidecar has open.", system.process_files),
            ("process_threads", "Threads of the sidecar.", system.process_threads),
            ("process_start_time_seconds", "When the sidecar started, in Unix time.", system.started),
            ("event_loop_lag_seconds", "How late the event loop was when last measured.", system.lag),
            ("event_loop_lag_max_seconds", "The largest lag of the last minute.", system.lag_max),
        ):
            yield self._gauge(name, text, (), [((), gauge)])
        yield self._counter(
            "process_cpu_seconds",
            "CPU time the sidecar has used, user and system.",
            (),
            [((), system.process_cpu_seconds)],
        )
        yield self._counter(
            "access_log_lines_dropped",
            "Lines of the access log that could not be written.",
            (),
            [((), self._access_log.dropped)],
        )
        build = InfoMetricFamily(f"{self._metrics.namespace}_build", "What is running.")
        build.add_metric((), {"version": self._version, "python": platform.python_version()})
        yield build


def _status(status: int) -> str:
    """A class (0 to 5, see `RouteCells.record`) still matches the usual `status=~"5.."`."""
    if status >= 100:
        return str(status)
    return f"{status}xx" if status else "other"


def _hit_rate(outcomes: Mapping[str, int]) -> float:
    """Revalidated answers count: their body did not come from the origin."""
    served = sum(outcomes.get(outcome, 0) for outcome in ("hit", "stale", "updating", "revalidated"))
    return served / sum(outcomes.values())


def _reasons(rows: Iterable[tuple[str, Mapping[str, int]]]) -> Iterator[Row]:
    for name, counts in rows:
        for reason, count in counts.items():
            yield (name, reason), count

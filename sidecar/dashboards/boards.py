"""The dashboards for the policies in force: what is not configured has no panel."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.dashboards import batch_board, figures
from sidecar.dashboards.facts import Facts
from sidecar.dashboards.panels import BREAKER_STATES, Json, Panel, Query, dashboard, variable
from sidecar.dashboards.promql import INSTANCE, INTERVAL, one_of, quantile, rate, total


def boards(facts: Facts, description: str) -> dict[str, Json]:
    """By the last part of their names."""
    ns = facts.namespace
    instance = variable("instance", "Sidecar", f"{ns}_build_info")
    route = variable("route", "Route", f"{ns}_route_info")
    made: dict[str, tuple[str, Iterator[Panel], list[Json]]] = {
        "overview": ("overview", _overview(facts), [instance]),
        "routes": ("routes", _routes(facts), [instance, route]),
        "upstreams": (
            "upstreams and the app's own calls",
            _upstreams(facts),
            [instance, variable("upstream", "Upstream", f"{ns}_upstream_attempts_total")],
        ),
    }
    if facts.cached():
        made["cache"] = (
            "cache",
            _cache(facts),
            [instance, variable("route", "Route", f"{ns}_cache_hit_rate")],
        )
    if facts.batches:
        made["batches"] = ("batches", batch_board.panels(facts), [instance])
    return {
        key: dashboard(f"{ns}-{key}", f"{ns}: {title}", description, panels, variables, ns)
        for key, (title, panels, variables) in made.items()
    }


def _overview(facts: Facts) -> Iterator[Panel]:
    ns = facts.namespace
    clients = one_of("route", facts.of_clients())
    requests, durations = f"{ns}_api_requests_total", f"{ns}_api_request_duration_seconds"
    every = total(requests, clients)
    failed = total(requests, f'{clients},status=~"5.."')
    yield Panel("Requests", [Query(every)], "reqps", "stat", width=4, height=4)
    yield Panel(
        "Answers 5xx",
        [Query(f"({failed} or vector(0)) / {every}")],
        "percentunit",
        "stat",
        "Alert HighErrorRate: 5 %.",
        limits=[(0.01, "yellow"), (0.05, "red")],
        width=4,
        height=4,
    )
    yield Panel(
        "p95",
        [Query(quantile(0.95, durations, "", clients))],
        "s",
        "stat",
        "Alert SlowResponses: 2 s.",
        limits=[(1, "yellow"), (2, "red")],
        width=4,
        height=4,
    )
    if facts.cached():
        operations, cached = f"{ns}_cache_operations_total", one_of("route", facts.cached())
        served = total(operations, f"{cached},{figures.SERVED}")
        yield Panel(
            "Answered from the cache",
            [Query(f"({served} or vector(0)) / {total(operations, cached)}")],
            "percentunit",
            "stat",
            "Of the routes that have a cache.",
            width=4,
            height=4,
        )
    if facts.falling_back():
        yield Panel(
            "Fallbacks",
            [Query(f"sum(rate({ns}_fallbacks_total{{{INSTANCE}}}[{INTERVAL}])) or vector(0)")],
            "reqps",
            "stat",
            limits=[(0.001, "yellow")],
            width=4,
            height=4,
        )
    if facts.breakers:
        open_ = (
            f"count({ns}_circuit_breaker_state{{{INSTANCE}}} == 2 "
            f"unless on (job, instance, upstream) {ns}_circuit_breaker_shadow == 1) or vector(0)"
        )
        yield Panel("Breakers open", [Query(open_)], "short", "stat", limits=[(1, "red")], width=4, height=4)
    yield Panel("Answers by status", [Query(rate(requests, "status", clients))], "reqps", stacked=True)
    yield Panel(
        "Time to the whole answer",
        [Query(quantile(share, durations, "", clients), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)],
        "s",
        text="Of all clients' routes together; 2 s at p95 is the alert SlowResponses.",
        limits=[(2, "red")],
    )
    yield Panel(
        "Errors of the sidecar's own",
        [Query(rate(f"{ns}_api_errors_total", "code"))],
        "reqps",
        text="By Sidecar-Error code: why there was no answer of the app.",
        stacked=True,
    )
    if facts.breakers:
        yield _breakers(facts)
    yield Panel(
        "Answers made without an upstream they need",
        [Query(rate(f"{ns}_degraded_total", "route, upstream"), "{{route}} without {{upstream}}")],
        "reqps",
        text="Marked Sidecar-Degraded, and not cached.",
    )
    yield Panel("Connections", [Query(f"{ns}_connections_active{{{INSTANCE}}}", "{{instance}} {{listener}}")])
    yield Panel(
        "Event-loop lag, worst of a minute",
        [Query(f"{ns}_event_loop_lag_max_seconds{{{INSTANCE}}}", "{{instance}}")],
        "s",
        text="Every request waits for so long. Alert EventLoopLag: 0.5 s.",
        limits=[(0.5, "red")],
    )
    yield Panel(
        "CPU and memory",
        [
            Query(f"{ns}_system_cpu_usage_percent{{{INSTANCE}}}", "{{instance}} CPU"),
            Query(f"{ns}_system_memory_usage_percent{{{INSTANCE}}}", "{{instance}} memory"),
        ],
        "percent",
        text="Of the machine, or of the container's limit.",
        most=100,
    )
    yield Panel(
        "The sidecar's own memory",
        [Query(f"{ns}_process_resident_memory_bytes{{{INSTANCE}}}", "{{instance}}")],
        "bytes",
    )


def _breakers(facts: Facts) -> Panel:
    state = f"max by (upstream) ({facts.namespace}_circuit_breaker_state{{{INSTANCE}}})"
    return Panel(
        "Circuit breakers",
        [Query(state, "{{upstream}}")],
        kind="state-timeline",
        states=BREAKER_STATES,
    )


def _routes(facts: Facts) -> Iterator[Panel]:
    ns = facts.namespace
    route = 'route=~"$route"'
    yield Panel("Requests", [Query(rate(f"{ns}_api_requests_total", "route", route))], "reqps")
    ratio = f"{figures.error_ratio(facts)}{{{route}}}"
    yield Panel(
        "Share of 5xx",
        [Query(ratio, "{{route}}")],
        "percentunit",
        text="Alert RouteErrorRatio: 10 %.",
        limits=[(0.1, "red")],
    )
    durations = f"{ns}_api_request_duration_seconds"
    yield Panel("p95", [Query(quantile(0.95, durations, "route", route), "{{route}}")], "s")
    for threshold, names in facts.by_threshold():
        yield Panel(
            f"p95 where {threshold:g} s is near the deadline",
            [Query(f"{figures.p95(facts)}{{{one_of('route', names)}}}", "{{route}}")],
            "s",
            text=f"Alert RouteNearDeadline: {', '.join(names)}.",
            limits=[(threshold, "red")],
        )
    yield Panel(
        "Errors of the sidecar's own",
        [Query(rate(f"{ns}_api_errors_total", "route, code", route), "{{route}} {{code}}")],
        "reqps",
        stacked=True,
    )
    yield Panel(
        "Retries",
        [Query(rate(f"{ns}_retries_total", "route, reason", route), "{{route}} {{reason}}")],
        "reqps",
        text="Attempts that were repeated, by what was wrong with the one before.",
    )
    yield Panel(
        "Retries that were not made",
        [Query(rate(f"{ns}_retries_skipped_total", "route, reason", route), "{{route}} {{reason}}")],
        "reqps",
        text="By what forbade them: the budget, the method, the time left.",
    )
    if facts.falling_back():
        yield Panel(
            "Fallbacks",
            [Query(rate(f"{ns}_fallbacks_total", "route, rung", route), "{{route}} {{rung}}")],
            "reqps",
            text="By the step of the ladder that answered.",
        )
    refused = [
        Query(rate(f"{ns}_{metric}_rejections_total", "route", route), f"{{{{route}}}} {metric}")
        for metric, used in (
            ("rate_limit", facts.rate_limits),
            ("concurrency_limit", facts.limits),
            ("circuit_breaker", facts.breakers),
            ("pace", facts.paces),
        )
        if used
    ]
    if refused:
        yield Panel("Refused", refused, "reqps", text="By the policy that refused.")
    yield Panel(
        "Clients that left, answers cut off",
        [
            Query(rate(f"{ns}_clients_gone_total", "route", route), "{{route}} left"),
            Query(rate(f"{ns}_responses_aborted_total", "route", route), "{{route}} cut off"),
        ],
        "reqps",
    )


def _upstreams(facts: Facts) -> Iterator[Panel]:
    ns = facts.namespace
    upstream = 'upstream=~"$upstream"'
    yield Panel(
        "Attempts by verdict",
        [
            Query(
                rate(f"{ns}_upstream_attempts_total", "upstream, verdict", upstream),
                "{{upstream}} {{verdict}}",
            )
        ],
        "reqps",
        text="What the answers say, whatever their status. Retries count again.",
        stacked=True,
    )
    durations = f"{ns}_upstream_attempt_duration_seconds"
    yield Panel(
        "p95 of attempts", [Query(quantile(0.95, durations, "upstream", upstream), "{{upstream}}")], "s"
    )
    if facts.breakers:
        yield _breakers(facts)
    if facts.limits:
        yield Panel(
            "Attempts in flight, and how many may be",
            [
                Query(f"{ns}_concurrency_in_flight{{{INSTANCE},{upstream}}}", "{{upstream}} in flight"),
                Query(f"{ns}_concurrency_limit{{{INSTANCE},{upstream}}}", "{{upstream}} limit"),
                Query(f"{ns}_concurrency_queue_length{{{INSTANCE},{upstream}}}", "{{upstream}} waiting"),
            ],
        )
    if facts.budgets:
        yield Panel(
            "Retries that the budget allows",
            [Query(f"{ns}_retry_budget_available{{{INSTANCE},{upstream}}}", "{{upstream}}")],
            text="At 0, failed attempts are not repeated.",
        )
    if facts.paces:
        yield Panel(
            "Quota left",
            [Query(f"{ns}_quota_remaining{{{INSTANCE},{upstream}}}", "{{upstream}}")],
            text="As far as the provider states it.",
        )
        yield Panel(
            "Held for want of quota",
            [Query(f"max by (upstream) ({ns}_pace_held{{{INSTANCE},{upstream}}})", "{{upstream}}")],
            kind="state-timeline",
            states=(("goes", "green"), ("held", "red")),
        )
        yield Panel(
            "Wait for a turn, p95",
            [Query(quantile(0.95, f"{ns}_pace_wait_seconds", "upstream, class", upstream))],
            "s",
        )
    yield Panel(
        "Connections opened and reused",
        [
            Query(
                rate(f"{ns}_upstream_connections_opened_total", "upstream", upstream), "{{upstream}} opened"
            ),
            Query(
                rate(f"{ns}_upstream_connections_reused_total", "upstream", upstream), "{{upstream}} reused"
            ),
            Query(rate(f"{ns}_upstream_connect_failures_total", "upstream", upstream), "{{upstream}} failed"),
        ],
        "ops",
    )
    if facts.upstreams:
        calls = f"{ns}_external_api_calls_total"
        yield Panel(
            "The app's calls to others",
            [Query(rate(calls, "upstream, verdict"), "{{upstream}} {{verdict}}")],
            "reqps",
            text="Alerts …APIErrors and ExternalAPIKeyRefused go by the verdicts.",
            stacked=True,
        )
        external = f"{ns}_external_api_duration_seconds"
        yield Panel(
            "p95 of those calls",
            [Query(quantile(0.95, external, "upstream"), "{{upstream}}")],
            "s",
            text="Alert ExternalServiceTimeout.",
        )
        yield Panel(
            "Hosts resolved", [Query(rate(f"{ns}_dns_lookups_total", "outcome"))], "ops", stacked=True
        )


def _cache(facts: Facts) -> Iterator[Panel]:
    ns = facts.namespace
    route = 'route=~"$route"'
    operations = f"{ns}_cache_operations_total"
    yield Panel(
        "Hit ratio",
        [Query(f"{figures.hit_ratio(facts)}{{{route}}}", "{{route}}")],
        "percentunit",
        text="Of the last 10 minutes. Alert LowCacheHitRate: all together below 70 %.",
        most=1,
    )
    yield Panel(
        "Requests by what the cache did", [Query(rate(operations, "outcome", route))], "reqps", stacked=True
    )
    yield Panel(
        "Misses by route",
        [Query(rate(operations, "route", f'{route},outcome="miss"'), "{{route}}")],
        "reqps",
        text="Each is a request to the upstream.",
    )
    yield Panel(
        "Stale answers",
        [
            Query(
                rate(operations, "route, outcome", f'{route},outcome=~"stale|updating"'),
                "{{route}} {{outcome}}",
            )
        ],
        "reqps",
        text="stale: instead of an error; updating: while a fresh one is fetched.",
    )
    yield Panel(
        "Hit ratio since the start",
        [Query(f"{ns}_cache_hit_rate{{{INSTANCE},{route}}}", "{{instance}} {{route}}")],
        "percentunit",
        most=1,
    )

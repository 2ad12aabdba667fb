"""The alerting and recording rules for the policies in force.

Names and thresholds are those of the original robustness guide where it has them (APIDown, HighErrorRate,
SlowResponses, …); where a policy states a time, an alert goes by that instead of a number for all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sidecar.dashboards import batch_alerts, figures, sidecar_alerts
from sidecar.dashboards.alert import Alert, Case, bucket_above, growing, histogram, steady
from sidecar.dashboards.facts import MEASURABLE, Facts, UpstreamFacts
from sidecar.dashboards.promql import one_of, seconds

JOB: Final = "sidecar"
"""The name of the scrape job, unless another is given."""


def recordings(facts: Facts) -> list[dict[str, object]]:
    """What several alerts and dashboards ask for, computed once."""
    rules: list[dict[str, object]] = [
        {"record": figures.error_ratio(facts), "expr": figures.error_ratio_expr(facts)},
        {"record": figures.p95(facts), "expr": figures.p95_expr(facts)},
    ]
    if facts.cached():
        rules.append({"record": figures.hit_ratio(facts), "expr": figures.hit_ratio_expr(facts)})
    return rules


def alerts(facts: Facts, job: str = JOB) -> list[Alert]:
    """All alerts that the policies in force make sense of."""
    return [
        *sidecar_alerts.alerts(facts, job),
        *_answers(facts),
        *_cache(facts),
        *_policies(facts),
        *_calls(facts),
        *(batch_alerts.alerts(facts) if facts.batches else ()),
    ]


def _answers(facts: Facts) -> Iterator[Alert]:
    """What clients of the app see."""
    ns = facts.namespace
    clients = one_of("route", facts.of_clients())
    name = facts.of_clients()[0]
    requests = f"{ns}_api_requests_total"
    failing = {
        f'{requests}{{route="{name}",method="GET",status="200"}}': growing(90),
        f'{requests}{{route="{name}",method="GET",status="503"}}': growing(30),
    }
    well = {**failing, f'{requests}{{route="{name}",method="GET",status="503"}}': growing(0)}
    yield Alert(
        "HighErrorRate",
        f'sum(rate({requests}{{{clients},status=~"5.."}}[5m]))\n'
        f"  / sum(rate({requests}{{{clients}}}[5m])) > 0.05",
        "2m",
        "critical",
        "{{ $value | humanizePercentage }} of the answers to clients are 5xx",
        "More than 5 % of all answers to clients were 5xx in the last 5 minutes.",
        "Look which route and which Sidecar-Error code it is: the panel Errors of the overview.",
        Case(failing, {}, well, value="25%"),
    )
    ratio = figures.error_ratio(facts)
    yield Alert(
        "RouteErrorRatio",
        f"{ratio}{{{_not_answering_themselves(facts)}}} > 0.1\n"
        f"  and sum by (job, route) (rate({requests}[5m])) > 0.02",
        "5m",
        "warning",
        "Route {{ $labels.route }}: {{ $value | humanizePercentage }} of the answers are 5xx",
        "More than 10 % of the answers of route {{ $labels.route }} were 5xx in the last 5 minutes.",
        "sidecar explain METHOD URL shows what is done for the route; its trail in the log says why.",
        Case(failing, {"route": name}, well, value="25%"),
    )
    durations = f"{ns}_api_request_duration_seconds"
    slow = min(2.0, MEASURABLE * facts.bounds[-1])
    yield Alert(
        "SlowResponses",
        f"histogram_quantile(0.95, sum by (le) (rate({durations}_bucket{{{clients}}}[5m])))"
        f" > {seconds(slow)}",
        "5m",
        "warning",
        f"p95 of all answers to clients is above {seconds(slow)} s",
        f"Of the answers to clients in the last 5 minutes, 5 % took longer than {seconds(slow)} s.",
        "See which route it is on the dashboard of routes; a slow provider shows among the upstreams.",
        Case(
            histogram(durations, f'route="{name}"', facts.bounds, bucket_above(facts.bounds, slow), 60),
            {},
            histogram(durations, f'route="{name}"', facts.bounds, facts.bounds[0], 60),
        ),
    )
    for threshold, names in facts.by_threshold():
        first = f'route="{names[0]}"'
        yield Alert(
            "RouteNearDeadline",
            f"{figures.p95(facts)}{{{one_of('route', names)}}} > {seconds(threshold)}",
            "5m",
            "warning",
            "Route {{ $labels.route }}: p95 is above " + seconds(threshold) + " s, near its deadline",
            "Of the requests in the last 5 minutes, 5 % took longer than "
            f"{seconds(threshold)} s: the next step are 504s.",
            "What is slow: the app, or an upstream it waits for? Only then: is the deadline too short?",
            Case(
                histogram(durations, first, facts.bounds, bucket_above(facts.bounds, threshold), 60),
                {"route": names[0]},
                histogram(durations, first, facts.bounds, facts.bounds[0], 60),
            ),
            {"threshold": f"{seconds(threshold)}s"},
        )
    degraded = f"{ns}_degraded_total"
    yield Alert(
        "DegradedAnswers",
        f"sum by (job, route, upstream) (rate({degraded}[5m]))\n"
        f"  / on (job, route) group_left sum by (job, route) (rate({requests}[5m])) > 0.1",
        "5m",
        "warning",
        "Route {{ $labels.route }} does without {{ $labels.upstream }}: "
        "{{ $value | humanizePercentage }} of its answers",
        "The app answered, but a call to {{ $labels.upstream }} that it needs had failed. Clients see "
        "Sidecar-Degraded; nothing of it is cached.",
        "Look at the upstream {{ $labels.upstream }}: its verdicts, its breaker, its quota.",
        Case(
            {**well, f'{degraded}{{route="{name}",upstream="google-maps"}}': growing(45)},
            {"route": name, "upstream": "google-maps"},
            {**well, f'{degraded}{{route="{name}",upstream="google-maps"}}': growing(0)},
            value="50%",
        ),
    )
    falling = facts.falling_back()
    if falling:
        fallbacks = f"{ns}_fallbacks_total"
        some = f'{requests}{{route="{falling[0]}",method="GET",status="200"}}'
        rung = f'{fallbacks}{{route="{falling[0]}",rung="respond"}}'
        yield Alert(
            "FallbackShare",
            f"sum by (job, route) (rate({fallbacks}[5m]))\n"
            f"  / sum by (job, route) (rate({requests}[5m])) > 0.05",
            "5m",
            "warning",
            "Route {{ $labels.route }}: {{ $value | humanizePercentage }} of the answers are fallbacks",
            "More than 5 % of the requests of route {{ $labels.route }} got a fallback instead of an answer.",
            "A fallback hides a failure from clients: look for it at the upstream of the route.",
            Case(
                {some: growing(60), rung: growing(15)},
                {"route": falling[0]},
                {some: growing(60), rung: growing(0)},
                value="25%",
            ),
        )


def _not_answering_themselves(facts: Facts) -> str:
    """A matcher for the routes whose 5xx are not meant."""
    meant = [it.name for it in facts.routes if it.answers_itself]
    return one_of("route", meant).replace("=", "!=" if len(meant) == 1 else "!", 1) if meant else ""


def _cache(facts: Facts) -> Iterator[Alert]:
    if facts.redis:
        redis = f"{facts.namespace}_redis_connected"
        yield Alert(
            "RedisCacheDown",
            f"{redis} == 0",
            "2m",
            "warning",
            "{{ $labels.instance }} has no Redis",
            "No request fails for it: each replica goes on with the cache in its own memory, and shared rate "
            "limits count by replica.",
            "Is the Redis there, and reached from the sidecar? GET /health/detailed says why it is away.",
            Case(
                {f'{redis}{{instance="a:9901"}}': steady(0)},
                {"instance": "a:9901"},
                {f'{redis}{{instance="a:9901"}}': steady(1)},
            ),
        )
    cached = facts.cached()
    if not cached:
        return
    operations = f"{facts.namespace}_cache_operations_total"
    hit, miss = (f'{operations}{{route="{cached[0]}",outcome="{it}"}}' for it in ("hit", "miss"))
    routes = one_of("route", cached)
    yield Alert(
        "LowCacheHitRate",
        f"sum(rate({operations}{{{routes},{figures.SERVED}}}[10m]))\n"
        f"  / sum(rate({operations}{{{routes}}}[10m])) < 0.7\n"
        f"  and sum(rate({operations}{{{routes}}}[10m])) > 0.1",
        "10m",
        "warning",
        "Only {{ $value | humanizePercentage }} of the requests are answered from the cache",
        "Fewer than 70 % of the requests of routes with a cache were hits in the last 10 minutes.",
        "sidecar explain METHOD URL shows the key of a request; the trail says what forbade to store.",
        Case({hit: growing(30), miss: growing(30)}, {}, {hit: growing(54), miss: growing(6)}, value="50%"),
    )
    ratio = figures.hit_ratio(facts)
    yield Alert(
        "CacheHitRatioFalling",
        f"{ratio} < 0.5 * avg_over_time({ratio}[1h] offset 10m)\n"
        f"  and sum by (job, route) (rate({operations}[10m])) > 0.1",
        "10m",
        "warning",
        "Route {{ $labels.route }}: the hit ratio has fallen to {{ $value | humanizePercentage }}",
        "The hit ratio of route {{ $labels.route }} is less than half of what it was in the hour before.",
        "A new parameter in the URL, a purge, a deployment, or a Redis that is away: look at the outcomes.",
        Case(
            # Hits all the time for 50 minutes, then none.
            {hit: "0+60x50 3000x60", miss: "0x50 0+60x60"},
            {"route": cached[0]},
            {hit: growing(60), miss: growing(1)},
            at=75,
            value="0%",
        ),
    )


def _policies(facts: Facts) -> Iterator[Alert]:
    """What policies do, and no longer can do."""
    ns = facts.namespace
    at = '{upstream="app"}'
    if facts.breakers:
        state, shadow = f"{ns}_circuit_breaker_state", f"{ns}_circuit_breaker_shadow"
        idle = '{upstream="in-shadow"}'
        yield Alert(
            "CircuitBreakerOpen",
            # Between two probings it is half-open for moments.
            f"max_over_time({state}[1m]) == 2\n  unless on (job, instance, upstream) {shadow} == 1",
            "1m",
            "critical",
            "The circuit breaker of {{ $labels.upstream }} is open",
            "Attempts at {{ $labels.upstream }} failed; nothing is sent there but probes, and what has no "
            "cached answer and no fallback is answered 503.",
            "Is {{ $labels.upstream }} down? GET /health/detailed says why; the breaker closes by itself.",
            Case(
                {state + at: steady(2), shadow + at: steady(0)},
                {"upstream": "app"},
                {state + at: steady(0), state + idle: steady(2), shadow + idle: steady(1)},
            ),
        )
    if facts.budgets:
        skipped = f"{ns}_retries_skipped_total"
        spent = f'{skipped}{{route="{facts.of_clients()[0]}",reason="budget"}}'
        yield Alert(
            "RetryBudgetExhausted",
            f'sum by (job, route) (rate({skipped}{{reason="budget"}}[5m])) > 0',
            "2m",
            "warning",
            "Route {{ $labels.route }}: failed attempts are not repeated, the retry budget is used up",
            "So many attempts fail that repeating them would only add to the load: clients see the failures.",
            "The budget does its work; look for the upstream that fails rather than raise it.",
            Case({spent: growing(6)}, {"route": facts.of_clients()[0]}, {spent: growing(0)}),
        )
    if facts.paces:
        yield from _quota(facts)
    for used, what, key in (
        (facts.rate_limits, "rate_limit_rejections_total", "RateLimited"),
        (facts.limits, "concurrency_limit_rejections_total", "ConcurrencyLimited"),
    ):
        if used:
            yield _refusing(facts, what, key)


def _refusing(facts: Facts, metric: str, name: str) -> Alert:
    refused = f"{facts.namespace}_{metric}"
    requests = f"{facts.namespace}_api_requests_total"
    route = facts.of_clients()[0]
    some = f'{requests}{{route="{route}",method="GET",status="200"}}'
    rate = name == "RateLimited"
    text = "clients send too many" if rate else "the upstream has enough to do, and the queue was too long"
    todo = (
        "One client or all? The access log has the address; behind a proxy, is it in trusted.proxies?"
        if rate
        else "Is the upstream slow, or the limit too low? Compare concurrency_limit with its p95."
    )
    return Alert(
        name,
        f"sum by (job, route) (rate({refused}[5m]))\n  / sum by (job, route) (rate({requests}[5m])) > 0.05",
        "5m",
        "warning",
        "Route {{ $labels.route }}: {{ $value | humanizePercentage }} of the requests are refused",
        f"More than 5 % were refused in the last 5 minutes: {text}.",
        todo,
        Case(
            {some: growing(60), f'{refused}{{route="{route}"}}': growing(30)},
            {"route": route},
            {some: growing(60), f'{refused}{{route="{route}"}}': growing(0)},
            value="50%",
        ),
    )


def _quota(facts: Facts) -> Iterator[Alert]:
    ns = facts.namespace
    name = facts.upstreams[0].names[0] if facts.upstreams else "app"
    at = f'{{upstream="{name}"}}'
    remaining = f"{ns}_quota_remaining"
    yield Alert(
        "QuotaLow",
        f"{remaining} / max_over_time({remaining}[1d]) < 0.1",
        "5m",
        "warning",
        "Less than a tenth of the quota of {{ $labels.upstream }} is left",
        "{{ $value | humanizePercentage }} is left of the most that {{ $labels.upstream }} stated within a "
        "day. When it is used up, calls are held and fallbacks are all that is left.",
        "Who uses it? Calls per route on the dashboard of upstreams; a longer ttl saves calls.",
        Case(
            {remaining + at: f"1000x10 50x{80}"},
            {"upstream": name},
            {remaining + at: steady(900)},
            value="5%",
        ),
    )
    held = f"{ns}_pace_held"
    yield Alert(
        "QuotaExhausted",
        f"{held} == 1",
        "1m",
        "critical",
        "The quota of {{ $labels.upstream }} is used up",
        "{{ $labels.upstream }} said so. No call goes there until its reset but one a while that finds out.",
        "Raise the quota at the provider, or wait: answers come from the cache and from fallbacks.",
        Case({held + at: steady(1)}, {"upstream": name}, {held + at: steady(0)}),
    )


def _calls(facts: Facts) -> Iterator[Alert]:
    """The app's own calls."""
    for upstream in facts.upstreams:
        yield from _calls_of(facts, upstream)
    if facts.upstreams:
        lookups = f"{facts.namespace}_dns_lookups_total"
        failed = f'{lookups}{{outcome="failed"}}'
        yield Alert(
            "NamesNotResolved",
            f'sum by (job, instance) (rate({lookups}{{outcome=~"failed|stale"}}[5m])) > 0',
            "5m",
            "warning",
            "The DNS does not answer the sidecar",
            "Hosts that the app calls could not be resolved; for a day their last addresses are used.",
            "Ask the servers of dns.servers (or of /etc/resolv.conf) from the sidecar's own container.",
            Case({failed: growing(6)}, {}, {failed: growing(0)}),
        )


def _calls_of(facts: Facts, upstream: UpstreamFacts) -> Iterator[Alert]:
    ns = facts.namespace
    names, name = one_of("upstream", upstream.names), upstream.names[0]
    calls = f"{ns}_external_api_calls_total"
    verdicts = 'verdict=~"transient|rate_limited|quota|auth"'
    series = f'{calls}{{upstream="{name}",verdict="%s"}}'
    yield Alert(
        f"{_camel(upstream.policy)}APIErrors",
        f"sum by (job, upstream) (rate({calls}{{{names},{verdicts}}}[5m])) > 0.05",
        "3m",
        "warning",
        "Calls to {{ $labels.upstream }} fail",
        "More than one call in 20 s failed in the last 5 minutes, by what the answers say rather than by "
        "their status.",
        "The verdicts on the dashboard of upstreams tell an outage from a quota and from a wrong key.",
        Case({series % "transient": growing(6)}, {"upstream": name}, {series % "transient": growing(1)}),
        heading="ExternalAPIErrors",
    )
    yield Alert(
        "ExternalAPIKeyRefused",
        f'sum by (job, upstream) (increase({calls}{{{names},verdict="auth"}}[5m])) > 0',
        "1m",
        "critical",
        "{{ $labels.upstream }} refuses our key",
        "Calls were answered as not authorised. No retry mends that.",
        "Was the key rotated, restricted or billed out? It is the app's own, or inject: of the policy file.",
        Case({series % "auth": growing(2)}, {"upstream": name}, {series % "auth": growing(0)}),
        {"policy": upstream.policy},
    )
    durations = f"{ns}_external_api_duration_seconds"
    labels = f'upstream="{name}",verdict="ok"'
    yield Alert(
        "ExternalServiceTimeout",
        f"histogram_quantile(0.95, sum by (job, upstream, le) (rate({durations}_bucket{{{names}}}[5m])))"
        f" > {seconds(upstream.slow)}",
        "5m",
        "warning",
        "Calls to {{ $labels.upstream }} are slow: p95 is above " + seconds(upstream.slow) + " s",
        "Of the calls in the last 5 minutes, 5 % took nearly as long as an attempt may.",
        "Is it the provider (its status page) or the way there? A slow_call breaker would spare the wait.",
        Case(
            histogram(durations, labels, facts.bounds, bucket_above(facts.bounds, upstream.slow), 60),
            {"upstream": name},
            histogram(durations, labels, facts.bounds, facts.bounds[0], 60),
        ),
        {"policy": upstream.policy},
    )


def _camel(name: str) -> str:
    """`google-maps` as `GoogleMaps`."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[^A-Za-z0-9]+", name))

"""Recorded figures: computed once a round by Prometheus, asked for by alerts and dashboards.

Named `level:metric:operations`, as the Prometheus documentation has it.
"""

from __future__ import annotations

from typing import Final

from sidecar.dashboards.facts import Facts

SERVED: Final = 'outcome=~"hit|stale|updating|revalidated"'
"""Of requests whose body did not come from the origin."""


def error_ratio(facts: Facts) -> str:
    return f"route:{facts.namespace}_api_requests:error_ratio_rate5m"


def error_ratio_expr(facts: Facts) -> str:
    requests = f"{facts.namespace}_api_requests_total"
    every = f"sum by (job, route) (rate({requests}[5m]))"
    return f'(sum by (job, route) (rate({requests}{{status=~"5.."}}[5m])) or 0 * {every})\n  / {every}'


def p95(facts: Facts) -> str:
    return f"route:{facts.namespace}_api_request_duration_seconds:p95_rate5m"


def p95_expr(facts: Facts) -> str:
    buckets = f"{facts.namespace}_api_request_duration_seconds_bucket"
    return f"histogram_quantile(0.95, sum by (job, route, le) (rate({buckets}[5m])))"


def hit_ratio(facts: Facts) -> str:
    return f"route:{facts.namespace}_cache_operations:hit_ratio_rate10m"


def hit_ratio_expr(facts: Facts) -> str:
    operations = f"{facts.namespace}_cache_operations_total"
    every = f"sum by (job, route) (rate({operations}[10m]))"
    served = f"sum by (job, route) (rate({operations}{{{SERVED}}}[10m]))"
    return f"({served} or 0 * {every})\n  / {every}"

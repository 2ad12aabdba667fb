"""What `/metrics` says of upstreams and of names that are looked up."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from sidecar.telemetry.families import Families, by_reason
from sidecar.telemetry.metrics import Histogram, Metrics


def upstream_families(make: Families, metrics: Metrics) -> Iterator[Metric]:
    upstreams = metrics.upstreams
    yield make.counter(
        "upstream_attempts",
        "Attempts at the upstream, by the verdict on each; retries count again.",
        ("upstream", "verdict"),
        (
            ((name, verdict.value), count)
            for name, cells in upstreams.items()
            for verdict, count in cells.attempts().items()
        ),
    )
    yield make.histogram(
        "upstream_attempt_duration_seconds",
        "Time from the start of an attempt to its response headers or its failure.",
        ("upstream",),
        (((name,), Histogram.sum_of(list(cells.durations.values()))) for name, cells in upstreams.items()),
    )
    external = [cells for cells in upstreams.values() if cells.external]
    yield make.counter(
        "external_api_calls",
        "Calls to upstreams of egress policies, by the verdict on each; retries count again.",
        ("upstream", "verdict"),
        (
            ((cells.name, verdict.value), count)
            for cells in external
            for verdict, count in cells.attempts().items()
        ),
    )
    yield make.histogram(
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
        yield make.counter(
            name,
            text,
            ("upstream",),
            [((upstream,), getattr(cells, attribute)) for upstream, cells in upstreams.items()],
        )
    yield make.gauge(
        "upstream_connections_idle",
        "Connections to the upstream that wait for a request.",
        ("upstream",),
        (((name,), cells.idle()) for name, cells in upstreams.items() if cells.idle is not None),
    )
    yield make.counter(
        "upstream_tls_handshakes",
        "TLS handshakes with the upstream: full, or resumed from the session of one before.",
        ("upstream", "kind"),
        by_reason(
            (name, cells.handshakes) for name, cells in upstreams.items() if any(cells.handshakes.values())
        ),
    )
    yield make.counter(
        "upstream_tls_failures",
        "TLS handshakes with the upstream that failed, by what was wrong.",
        ("upstream", "fault"),
        by_reason((name, cells.tls_failures) for name, cells in upstreams.items()),
    )


def dns_families(make: Families, metrics: Metrics) -> Iterator[Metric]:
    dns = metrics.dns
    yield make.counter(
        "dns_lookups",
        "Names of hosts that the app calls, by how they were resolved: fresh (known), asked, stale (the "
        "DNS failed, the last addresses were used), absent or failed.",
        ("outcome",),
        (((outcome,), count) for outcome, count in dns.lookups.items()),
    )
    yield make.counter(
        "dns_questions",
        "Questions to name servers, by what came of them: answer, absent, refused, invalid, unreachable "
        "or timeout.",
        ("outcome",),
        (((outcome,), count) for outcome, count in dns.questions.items()),
    )

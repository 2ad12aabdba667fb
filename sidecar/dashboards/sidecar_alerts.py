"""Alerts on the sidecar itself, the app beside it, and the machine they are on."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.dashboards.alert import Alert, Case, growing, steady
from sidecar.dashboards.facts import NEAR, Facts
from sidecar.dashboards.promql import quoted


def alerts(facts: Facts, job: str) -> Iterator[Alert]:
    """`job` is the scrape job of the sidecars."""
    named = f"job={quoted(job)}"
    up = f'up{{{named},instance="a:9901"}}'
    yield Alert(
        "SidecarDown",
        f"up{{{named}}} == 0 or absent(up{{{named}}})",
        "1m",
        "critical",
        "The sidecar {{ $labels.instance }} does not answer Prometheus",
        "Its metrics could not be scraped for a minute, or no sidecar is scraped at all. Clients of the app "
        "come by it: it is likely that they get nothing.",
        "Is the process there? Its last log lines say why it ended; exit code 2 is the configuration.",
        Case({up: steady(0)}, {"job": job, "instance": "a:9901"}, {up: steady(1)}),
    )
    yield _app_down(facts)
    yield from _machine(facts)
    yield from _process(facts)


def _app_down(facts: Facts) -> Alert:
    status = f"{facts.namespace}_health_check_status"
    app = f'{status}{{instance="a:9901",check="app"}}'
    return Alert(
        "APIDown",
        f'{status}{{check="app"}} >= 2',
        "1m",
        "critical",
        "The app behind {{ $labels.instance }} is down",
        "It refuses connections, or says itself that it is not well. One that is merely busy does not count.",
        "Is its process there? Its own log says why it ended; GET /health/detailed what the probe got.",
        Case({app: steady(2)}, {"instance": "a:9901", "check": "app"}, {app: steady(1)}),
    )


def _machine(facts: Facts) -> Iterator[Alert]:
    ns = facts.namespace
    for name, metric, threshold, hold, what, todo in (
        (
            "HighCPUUsage",
            "system_cpu_usage_percent",
            85,
            "5m",
            "CPU",
            "Whose is it? The sidecar's own is process_cpu_seconds_total. If it is load, add replicas.",
        ),
        (
            "HighMemoryUsage",
            "system_memory_usage_percent",
            90,
            "3m",
            "memory",
            "Whose is it? The sidecar's is process_resident_memory_bytes; cache.memory bounds the cache.",
        ),
        (
            "HighDiskUsage",
            "system_disk_usage_percent",
            85,
            "10m",
            "disk",
            "What grows there? Logs that nobody rotates, mostly.",
        ),
    ):
        gauge = f"{ns}_{metric}"
        yield Alert(
            name,
            f"{gauge} > {threshold}",
            hold,
            "critical" if name == "HighMemoryUsage" else "warning",
            f"More than {threshold} % of the {what} is in use on {{{{ $labels.instance }}}}",
            f"More than {threshold} % of the {what} of the machine, or of the container's limit, is in use.",
            todo,
            Case(
                {f'{gauge}{{instance="a:9901"}}': steady(threshold + 5)},
                {"instance": "a:9901"},
                {f'{gauge}{{instance="a:9901"}}': steady(threshold - 5)},
            ),
        )


def _process(facts: Facts) -> Iterator[Alert]:
    ns = facts.namespace
    here = {"instance": "a:9901"}
    at = '{instance="a:9901"}'
    lag = f"{ns}_event_loop_lag_max_seconds"
    yield Alert(
        "EventLoopLag",
        f"{lag} > 0.5",
        "2m",
        "warning",
        "The event loop of {{ $labels.instance }} is late",
        "At worst by more than half a second in the last minute: every request waited for that long.",
        "Is the CPU used up, or throttled by a limit? Large JSON bodies that rules look into take time too.",
        Case({lag + at: steady(0.8)}, here, {lag + at: steady(0.01)}),
    )
    active = f"{ns}_connections_active"
    most = round(NEAR * facts.connections)
    listener = '{instance="a:9901",listener="ingress"}'
    yield Alert(
        "ConnectionsNearLimit",
        f"{active} > {most}",
        "2m",
        "warning",
        "Listener {{ $labels.listener }} has nearly as many connections as it may",
        f"More than {most} of limits.connections ({facts.connections}) are open: beyond it clients are "
        "turned away.",
        "A flood, a client that leaks, or growth? connections_accepted tells; then limits.connections.",
        Case(
            {active + listener: steady(most + 1)},
            {**here, "listener": "ingress"},
            {active + listener: steady(most)},
        ),
    )
    dropped = f"{ns}_access_log_lines_dropped_total"
    yield Alert(
        "AccessLogDropped",
        f"increase({dropped}[5m]) > 0",
        "1m",
        "warning",
        "Lines of the access log of {{ $labels.instance }} are lost",
        "Who reads standard output does not keep up, or a disk is full. No request waits for it.",
        "Look at the log collector and its disk.",
        Case({dropped + at: growing(10)}, here, {dropped + at: growing(0)}),
    )
    injected = f"{ns}_faults_injected_total"
    fault = f'{injected}{{instance="a:9901",route="any",kind="delay"}}'
    yield Alert(
        "FaultsInjected",
        f"sum by (job, instance, route) (increase({injected}[5m])) > 0",
        "1m",
        "info",
        "Faults are injected on purpose into route {{ $labels.route }}",
        "A drill, or a fault that somebody forgot.",
        "GET /admin/faults lists them; they expire by themselves.",
        Case({fault: growing(6)}, {**here, "route": "any"}, {fault: growing(0)}),
    )

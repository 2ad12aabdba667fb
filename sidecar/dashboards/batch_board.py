"""The dashboard of batches."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.dashboards.batch_alerts import BACKLOG, SLOW
from sidecar.dashboards.facts import Facts
from sidecar.dashboards.panels import Panel, Query
from sidecar.dashboards.promql import INSTANCE, rate


def panels(facts: Facts) -> Iterator[Panel]:
    """What they do, what holds them up, and what they cost."""
    ns = facts.namespace

    def gauge(name: str) -> str:
        return f"{ns}_batch_{name}{{{INSTANCE}}}"

    def rates(name: str) -> str:
        return rate(f"{ns}_batch_{name}_total", "instance")

    yield Panel(
        "Lines that wait",
        [Query(gauge("queue_size"), "{{instance}}")],
        text=f"Of running batches. Alerts BatchProcessingBacklog: {BACKLOG}, and BatchStalled: none ends. "
        "Replicas that share a store see the same lines.",
        limits=[(BACKLOG, "red")],
    )
    yield Panel(
        "Lines done",
        [Query(rate(f"{ns}_batch_jobs_total", "outcome"), "{{outcome}}")],
        "ops",
        text=f"By how they ended. Alerts BatchLinesFailing: 5 %, and LowBatchThroughput: {SLOW} a second.",
        stacked=True,
    )
    yield Panel(
        "Lines in flight, and how many may be",
        [
            Query(gauge("in_flight"), "{{instance}} in flight"),
            Query(gauge("concurrency_limit"), "{{instance}} limit"),
        ],
        text="The limit follows what the upstream bears, and gives way to interactive requests.",
    )
    yield Panel(
        "Why lines take longer, or less",
        [
            Query(rates("retries"), "{{instance}} sent again"),
            Query(rates("refusals"), "{{instance}} refused, put off"),
            Query(rates("cache_hits"), "{{instance}} from the cache"),
        ],
        "ops",
    )
    yield Panel(
        "Batches that cannot go on",
        [Query(gauge("paused"), "{{instance}}")],
        text="Their upstream, its quota or the store is away: sidecar batch status ID says which.",
        limits=[(1, "red")],
    )
    yield Panel(
        "Failures of the store",
        [Query(rates("store_errors"), "{{instance}}")],
        "ops",
        text="Alert BatchStoreDown goes by the check of /health/detailed.",
    )
    yield Panel(
        "Batches accepted and ended, last hour",
        [Query(f"sum by (status) (increase({ns}_batch_batches_total{{{INSTANCE}}}[1h]))", "{{status}}")],
    )
    yield Panel("Lines fetched at a time", [Query(gauge("chunk_size"), "{{instance}}")])

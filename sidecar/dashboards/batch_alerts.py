"""Alerts on batches: lines that fail, wait or stand still, and a store that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sidecar.dashboards.alert import Alert, Case, growing, steady
from sidecar.dashboards.facts import Facts

BACKLOG: Final = 1000
"""Lines that wait."""
SLOW: Final = 100
"""Lines done a second."""


def alerts(facts: Facts) -> Iterator[Alert]:
    """Replicas that share a store see the same lines: what waits is the most that one of them sees."""
    ns = facts.namespace
    queue, done = f"{ns}_batch_queue_size", f"{ns}_batch_jobs_total"
    waiting = f'{queue}{{instance="a:9901"}}'
    well, failed = (f'{done}{{instance="a:9901",outcome="{it}"}}' for it in ("ok", "failed"))
    yield Alert(
        "BatchLinesFailing",
        f'sum by (job) (rate({done}{{outcome!="ok"}}[5m]))\n  / sum by (job) (rate({done}[5m])) > 0.05',
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the lines of batches fail",
        "More than 5 % of the lines that ended in the last 5 minutes have no good answer, after all retries.",
        "sidecar batch results ID has each line's status or error; one in common is the upstream's.",
        Case(
            {well: growing(90), failed: growing(30)},
            {},
            {well: growing(119), failed: growing(1)},
            value="25%",
        ),
    )
    yield Alert(
        "BatchStalled",
        f"max by (job) (min_over_time({queue}[10m])) > 0\n"
        f"  and on (job) sum by (job) (increase({done}[10m])) == 0",
        "5m",
        "warning",
        "Batches stand still: lines wait, and none has ended for ten minutes",
        "A batch waits for its upstream, its quota or its store, or all of its calls hang.",
        "sidecar batch status ID says why it is paused.",
        Case(
            {waiting: steady(500), well: "600x90"},
            {},
            {waiting: steady(500), well: "600x40 600+1x50"},
        ),
    )
    yield Alert(
        "BatchProcessingBacklog",
        f"max by (job) ({queue}) > {BACKLOG}",
        "5m",
        "warning",
        f"More than {BACKLOG} lines of batches wait",
        "{{ $value | humanize }} lines of running batches are not done. Interactive requests go first: this "
        "harms none.",
        "Is it a large batch that runs well? Compare lines done a second with when it must be over.",
        Case({waiting: steady(BACKLOG + 500)}, {}, {waiting: steady(BACKLOG)}, value="1.5k"),
    )
    yield Alert(
        "LowBatchThroughput",
        f"sum by (job) (rate({done}[5m])) < {SLOW}\n"
        f"  and on (job) max by (job) (min_over_time({queue}[5m])) > {SLOW}",
        "10m",
        "info",
        f"Batches do fewer than {SLOW} lines a second",
        "{{ $value | humanize }} lines a second were done in the last 5 minutes, while others waited.",
        "sidecar batch status ID says what holds it: the upstream, its quota, or interactive traffic.",
        Case(
            {waiting: steady(5000), well: growing(600)},
            {},
            {waiting: steady(5000), well: growing(6600)},
            value="10",
        ),
    )
    status = f"{ns}_health_check_status"
    store = f'{status}{{instance="a:9901",check="batch"}}'
    yield Alert(
        "BatchStoreDown",
        f'{status}{{check="batch"}} > 0',
        "2m",
        "critical",
        "The batch store of {{ $labels.instance }} cannot be used",
        "It cannot be written to, or does not answer. New batches are refused and running ones stand still; "
        "what was accepted is kept, and nothing else suffers.",
        "GET /health/detailed says why. Is the disk full or read-only, or the Redis away?",
        Case({store: steady(1)}, {"instance": "a:9901", "check": "batch"}, {store: steady(0)}),
    )

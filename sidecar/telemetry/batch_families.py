"""What `/metrics` says of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sidecar.batch.stats import Stats
    from sidecar.telemetry.families import Families, Source


def batch_source(stats: Stats, now: Callable[[], float]) -> Source:
    """Of the batches of one process; `now` is that of its clock."""

    def families(make: Families) -> Iterator[Metric]:
        yield make.counter(
            "batch_jobs",
            "Lines of batches that are done, by how they ended.",
            ("outcome",),
            [((outcome,), count) for outcome, count in stats.jobs.items()],
        )
        yield make.counter(
            "batch_batches",
            "Batches that were accepted, and those that ended, by status.",
            ("status",),
            [((status,), count) for status, count in stats.batches.items()],
        )
        for name, text, count in (
            ("batch_retries", "Lines that were sent again after a failure.", stats.retries),
            ("batch_refusals", "Calls of lines that were refused, and put off.", stats.refusals),
            ("batch_cache_hits", "Lines that the cache answered, or that shared an answer.", stats.cached),
            ("batch_store_errors", "Times that the store of batches failed.", stats.store_errors),
        ):
            yield make.counter(name, text, (), [((), count)])
        for name, text, level in (
            ("batch_queue_size", "Lines of running batches that are not done.", stats.queued),
            ("batch_in_flight", "Lines in flight.", stats.in_flight),
            ("batch_concurrency_limit", "Lines that may be in flight now.", stats.limit),
            ("batch_chunk_size", "Lines that are fetched at a time.", stats.chunk),
            ("batch_paused", "Batches that cannot go on just now.", stats.paused),
            ("batch_jobs_per_second", "Lines done a second, of the last ten seconds.", stats.rate.at(now())),
        ):
            yield make.gauge(name, text, (), [((), level)])

    return families

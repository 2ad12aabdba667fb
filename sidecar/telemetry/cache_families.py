"""What `/metrics` says of the cache's store, and of the Redis that replicas share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sidecar.telemetry.families import Families, Source, bounded

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sidecar.caching.cache import Caching
    from sidecar.stores.stats import SharedStats


def cache_source(caching: Caching) -> Source:
    """Of the store, by the namespaces of policy files."""
    store = caching.store

    def families(make: Families) -> Iterator[Metric]:
        spaces = store.spaces
        yield make.counter(
            "cache_store_operations",
            "Operations on the store, by namespace: hit and miss are look-ups, set and delete what followed; "
            "error is what the shared store would not take.",
            ("namespace", "operation"),
            (
                ((name, operation), count)
                for name, stats in spaces.items()
                for operation, count in (
                    ("hit", stats.hits),
                    ("miss", stats.misses),
                    ("set", stats.sets),
                    ("delete", stats.deletes),
                    ("error", stats.errors),
                )
            ),
        )
        usage = store.memory.usage()
        yield make.gauge(
            "cache_memory_used_bytes",
            "Memory that what is stored takes, by namespace.",
            ("namespace",),
            (((name,), usage[name].bytes if name in usage else 0) for name in spaces),
        )
        yield make.gauge(
            "cache_memory_entries",
            "Records in memory, by namespace.",
            ("namespace",),
            (((name,), usage[name].records if name in usage else 0) for name in spaces),
        )
        yield make.gauge(
            "cache_memory_capacity_bytes",
            "Memory that the cache may take: cache.memory.",
            (),
            [((), store.memory.capacity)],
        )
        memory = store.memory.stats
        yield make.counter(
            "cache_memory_removals",
            "Records that memory let go: evicted for others, expired, or refused as too large.",
            ("reason",),
            [
                (("evicted",), memory.evictions),
                (("expired",), memory.expired),
                (("refused",), memory.refused),
            ],
        )
        yield make.gauge(
            "cache_fills", "Fills under way, each for all who wait.", (), [((), len(caching.fills))]
        )

    return families


def redis_source(stats: SharedStats) -> Source:
    """Of the Redis, whatever is kept there."""

    def families(make: Families) -> Iterator[Metric]:
        yield make.gauge("redis_connected", "1 while the Redis answers.", (), [((), stats.connected)])
        yield make.gauge(
            "redis_latency_seconds", "Smoothed round-trip time to the Redis.", (), [((), stats.latency)]
        )
        yield make.counter("redis_connects", "Connections made to the Redis.", (), [((), stats.connects)])
        yield make.counter(
            "redis_operations_lost",
            "Operations that the Redis did not get or answer: given up at their bound (timeout), or not even "
            "tried as it was away (skipped).",
            ("reason",),
            [(("timeout",), stats.timeouts), (("skipped",), stats.skipped)],
        )
        yield make.counter(
            "redis_errors",
            "Errors of the Redis or of the way there, by kind: the first word of its reply, or connect, "
            "timeout, reset, protocol, replica.",
            ("kind",),
            (((kind,), count) for kind, count in bounded(stats.errors).items()),
        )

    return families

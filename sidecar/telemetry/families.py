"""How counts become metric families of the exposition: shared by all that have something to show.

Names follow the Prometheus conventions: base units, `_total` on counters (which the library adds), one
namespace before them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from sidecar.telemetry.histogram import Histogram
from sidecar.telemetry.reasons import MOST_REASONS

if TYPE_CHECKING:
    from sidecar.clock import Clock

Row = tuple[tuple[str, ...], float]
"""The values of the labels, and the figure."""


class Families:
    """Makes families whose names begin with `namespace`."""

    def __init__(self, namespace: str, clock: Clock) -> None:
        self.namespace = namespace
        self.clock = clock

    def counter(self, name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
        family = CounterMetricFamily(f"{self.namespace}_{name}", text, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        return family

    def gauge(self, name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
        family = GaugeMetricFamily(f"{self.namespace}_{name}", text, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        return family

    def info(self, name: str, text: str, labels: Mapping[str, str]) -> Metric:
        family = InfoMetricFamily(f"{self.namespace}_{name}", text)
        family.add_metric((), dict(labels))
        return family

    def histogram(
        self, name: str, text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], Histogram]]
    ) -> Metric:
        family = HistogramMetricFamily(f"{self.namespace}_{name}", text, labels=labels)
        # Exemplars carry the loop's time; at scrape that becomes Unix time.
        epoch = self.clock.wall() - self.clock.now()
        for values, histogram in rows:
            limits = (*(str(bound) for bound in histogram.bounds), "+Inf")
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            counts = accumulate(histogram.buckets)
            for limit, count, seen in zip(limits, counts, histogram.exemplars, strict=True):
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


Source = Callable[[Families], Iterator[Metric]]
"""What a part of the sidecar has to show at a scrape. Called on the event loop: reads counts, and nothing
that could wait."""


def by_reason(rows: Iterable[tuple[str, Mapping[str, int]]]) -> Iterator[Row]:
    """A row for each count of each name."""
    for name, counts in rows:
        for reason, count in counts.items():
            yield (name, reason), count


def bounded(counts: Mapping[str, int]) -> dict[str, int]:
    """The same with at most `MOST_REASONS` names and `other`: of counts by what others have said."""
    names = list(counts)
    kept = {name: counts[name] for name in names[:MOST_REASONS]}
    if rest := sum(counts[name] for name in names[MOST_REASONS:]):
        kept["other"] = kept.get("other", 0) + rest
    return kept

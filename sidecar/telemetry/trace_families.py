"""What `/metrics` says of traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sidecar.telemetry.families import Families, Source
    from sidecar.telemetry.trace import Counts


def trace_source(counts: Counts) -> Source:
    """Of one process."""

    def families(make: Families) -> Iterator[Metric]:
        yield make.counter(
            "trace_spans",
            "Spans of sampled traces: exported; dropped, as too many waited; failed, as the collector did "
            "not take them.",
            ("outcome",),
            [(("exported",), counts.exported), (("dropped",), counts.dropped), (("failed",), counts.failed)],
        )

    return families

"""What `/metrics` says of the checks behind `/health`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sidecar.telemetry.families import Families, Source
from sidecar.telemetry.health import overall

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from sidecar.telemetry.health import Health

LEVELS: Final = {"healthy": 0, "degraded": 1, "unhealthy": 2, "critical": 3}


def health_source(health: Health) -> Source:
    def families(make: Families) -> Iterator[Metric]:
        looked = health.look()
        yield make.gauge(
            "health_status",
            "Status of the whole: 0 healthy, 1 degraded, 2 unhealthy, 3 critical.",
            (),
            [((), LEVELS[overall(looked)])],
        )
        yield make.gauge(
            "health_check_status",
            "Status of each check of /health/detailed, by the same numbers.",
            ("check",),
            (((name,), LEVELS[it.result.status]) for name, it in looked.items()),
        )
        yield make.gauge(
            "ready",
            "1 while traffic should come here: what /health/ready says.",
            (),
            [((), health.ready()[0])],
        )

    return families

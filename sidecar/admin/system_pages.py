"""The admin listener's page about the machine, the container and the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sidecar.admin.page import Page, json_page
from sidecar.admin.route import Route, in_json, showing

if TYPE_CHECKING:
    from sidecar.telemetry.health import Health
    from sidecar.telemetry.system import System


class SystemPages:
    """What the last sample found: asking reads nothing of the system."""

    def __init__(self, health: Health, system: System) -> None:
        self._health = health
        self._system = system

    def routes(self) -> Iterator[Route]:
        yield showing(
            "/monitoring/system",
            self._show,
            "CPU, memory, disks, event loop and garbage, as last sampled.",
            {"200": in_json("The figures.")},
        )

    def _show(self, _: str) -> Page:
        system = self._system
        last = system.last
        return json_page(
            {
                "status": self._health.status(),
                "cpu": {
                    "percent": last.cpu_percent,
                    "count": last.cpu_count,
                    "load_average": last.load_average,
                },
                "memory": {
                    "percent": last.memory_percent,
                    "total_bytes": last.memory_total,
                    "available_bytes": last.memory_available,
                },
                "container": last.container._asdict(),
                "disks": {
                    use: {
                        "percent": disk.percent,
                        "free_bytes": disk.free,
                        "total_bytes": disk.total,
                        "writable": disk.writable,
                    }
                    for use, disk in last.disks.items()
                },
                "process": {
                    "cpu_seconds": last.process_cpu_seconds,
                    "resident_bytes": last.process_resident,
                    "threads": last.process_threads,
                    "open_fds": last.process_files,
                },
                "event_loop": {
                    "lag_ms": round(system.lag * 1000, 3),
                    "lag_max_ms": round(system.lag_max * 1000, 3),
                },
                "garbage": {
                    "pause_seconds": system.garbage.pauses,
                    "longest_pause_seconds": system.garbage.longest,
                },
            }
        )

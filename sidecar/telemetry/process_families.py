"""What `/metrics` says of the listeners, the process, and where it runs."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from sidecar.telemetry.cgroup import CgroupFigures
from sidecar.telemetry.families import Families
from sidecar.telemetry.garbage import Garbage
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.system import System


def listener_families(make: Families, metrics: Metrics) -> Iterator[Metric]:
    listeners = metrics.listeners
    for name, text, attribute in (
        ("connections_accepted", "Client connections accepted.", "accepted"),
        (
            "connections_refused",
            "Client connections closed at once: limits.connections was full.",
            "refused",
        ),
        ("bad_requests", "Requests the listener refused before any route was known.", "bad_requests"),
        (
            "connections_intercepted",
            "Connections whose TLS ended here, as a policy file lists their host.",
            "intercepted",
        ),
        ("tls_failures", "Connections that ended before their TLS began.", "tls_failures"),
    ):
        yield make.counter(
            name,
            text,
            ("listener",),
            [((listener,), getattr(cells, attribute)) for listener, cells in listeners.items()],
        )
    yield make.gauge(
        "connections_active",
        "Client connections open now.",
        ("listener",),
        (((name,), cells.active) for name, cells in listeners.items()),
    )


def process_families(make: Families, system: System) -> Iterator[Metric]:
    last = system.last
    garbage = system.garbage
    for name, text, gauge in (
        (
            "system_cpu_usage_percent",
            "CPU in use, 0 to 100: of the container's limit where it has one, else of the machine.",
            last.cpu_percent,
        ),
        (
            "system_memory_usage_percent",
            "Memory in use, 0 to 100: of the container's limit where it has one, else of the machine.",
            last.memory_percent,
        ),
        ("system_load_average", "Load average of the last minute.", last.load_average[0]),
        ("system_cpus", "CPUs of the machine.", last.cpu_count),
        ("system_memory_total_bytes", "Memory of the machine.", last.memory_total),
        ("process_resident_memory_bytes", "Memory the sidecar holds.", last.process_resident),
        ("process_open_fds", "File descriptors the sidecar has open.", last.process_files),
        ("process_threads", "Threads of the sidecar.", last.process_threads),
        ("process_start_time_seconds", "When the sidecar started, in Unix time.", system.started),
        ("event_loop_lag_seconds", "How late the event loop was when last measured.", system.lag),
        ("event_loop_lag_max_seconds", "The largest lag of the last minute.", system.lag_max),
        ("event_loop_tasks", "Tasks of the event loop that are not done.", system.tasks),
        ("gc_longest_pause_seconds", "The longest collection of garbage so far.", garbage.longest),
    ):
        yield make.gauge(name, text, (), [((), gauge)])
    yield make.counter(
        "process_cpu_seconds",
        "CPU time the sidecar has used, user and system.",
        (),
        [((), last.process_cpu_seconds)],
    )
    yield make.gauge(
        "system_disk_usage_percent",
        "Space in use on the file system of a folder of the sidecar's, 0 to 100.",
        ("folder",),
        (((use,), disk.percent) for use, disk in last.disks.items() if disk.total),
    )
    yield make.gauge(
        "system_disk_free_bytes",
        "Space that is left there.",
        ("folder",),
        (((use,), disk.free) for use, disk in last.disks.items() if disk.total),
    )
    yield from _garbage(make, garbage)
    yield from _container(make, last.container)


def _garbage(make: Families, garbage: Garbage) -> Iterator[Metric]:
    yield make.counter(
        "gc_pause_seconds",
        "Time in which Python collected garbage and did nothing else.",
        (),
        [((), garbage.pauses)],
    )
    generations = [(str(number), found) for number, found in enumerate(garbage.generations())]
    for name, text, attribute in (
        ("gc_collections", "Collections of garbage, by generation.", "collections"),
        ("gc_objects_collected", "Objects that these freed.", "collected"),
        ("gc_objects_uncollectable", "Objects that they found and could not free.", "uncollectable"),
    ):
        yield make.counter(
            name,
            text,
            ("generation",),
            [((number,), getattr(found, attribute)) for number, found in generations],
        )


def _container(make: Families, figures: CgroupFigures) -> Iterator[Metric]:
    """Only what is limited: on a bare machine no series."""
    for name, text, gauge in (
        ("container_cpu_limit_cores", "CPUs that the container may use.", figures.cpu_limit),
        ("container_memory_limit_bytes", "Memory that the container may use.", figures.memory_limit),
        (
            "container_memory_used_bytes",
            "Memory that it uses, without cached files that can be given up.",
            figures.memory_used,
        ),
    ):
        yield make.gauge(name, text, (), [((), gauge)] if gauge is not None else [])
    for name, text, counter in (
        ("container_cpu_seconds", "CPU time that the container has used.", figures.cpu_seconds),
        (
            "container_cpu_throttled_periods",
            "Periods in which it had to wait, its CPU limit being used up.",
            figures.throttled_periods,
        ),
        ("container_cpu_throttled_seconds", "How long it waited so.", figures.throttled_seconds),
    ):
        yield make.counter(name, text, (), [((), counter)] if counter is not None else [])

"""Batches of one process, built from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sidecar.batch.calls import Calls
from sidecar.batch.jobs import JobStore, Options
from sidecar.batch.redis_streams import RedisStreams
from sidecar.batch.runner import Runner
from sidecar.batch.sender import Bounds
from sidecar.batch.service import Batches
from sidecar.batch.sqlite import SqliteStore
from sidecar.batch.stats import Stats
from sidecar.batch.worker import worker_name
from sidecar.decisions.batch_concurrency import Machine

if TYPE_CHECKING:
    from sidecar.clock import Clock, Ids, Random
    from sidecar.config.load import Loaded
    from sidecar.exchange import Exchange
    from sidecar.pipeline import Handler
    from sidecar.telemetry.metrics import Metrics
    from sidecar.telemetry.system import System

__all__ = ["Batches", "build"]


def build(
    loaded: Loaded,
    route: Callable[[Exchange], Handler],
    *,
    clock: Clock,
    random: Random,
    ids: Ids,
    metrics: Metrics,
    system: System,
    authority: str,
) -> Batches | None:
    """None where `batch.store` is off. `route` finds handlers, `authority` is the host of paths."""
    settings = loaded.config.batch
    store: JobStore
    exists: Callable[[], bool]
    if (path := settings.path(loaded.directory)) is not None:
        system.watch_folder("batch", path.parent)
        store = SqliteStore(path, clock.wall, settings.max_store)
        exists = path.exists
    elif (target := settings.redis()) is not None:
        store = RedisStreams(target, clock, settings.keep)
        exists = _always
    else:
        return None
    routes = {route.name: route for policy in loaded.policies for route in policy.routes}
    calls = Calls(route, routes, clock, ids, authority)
    worker = worker_name(ids)

    def machine() -> Machine:
        last = system.last
        return Machine(
            last.cpu_percent, settings.cpu * 100, last.process_resident, settings.memory, system.lag
        )

    def requests() -> Mapping[str, tuple[int, float]]:
        return {
            name: (cells.durations.count, cells.durations.seconds) for name, cells in metrics.routes.items()
        }

    runner = Runner(
        store,
        calls,
        clock,
        random,
        worker=worker,
        bounds=Bounds(
            size=settings.size,
            concurrency=settings.concurrency,
            max_concurrency=settings.max_concurrency,
        ),
        keep=settings.keep,
        stats=Stats(),
        machine=machine,
        requests=requests,
    )
    return Batches(
        store,
        runner,
        calls,
        clock=clock,
        ids=ids,
        worker=worker,
        defaults=Options(deadline=settings.deadline, retries=settings.retries),
        exists=exists,
    )


def _always() -> bool:
    """Other replicas may have put batches there."""
    return True

"""Checks of what the sidecar itself stands on: its event loop, its disks, Redis, the batch store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.telemetry.checks import Check, CheckResult, Known

if TYPE_CHECKING:
    from sidecar.telemetry.system import Disk, System

LAG_DEGRADED: Final = 1.0
"""Seconds of event-loop lag, at worst in the last minute, that count as degraded."""
DISK_FREE: Final = 0.05
"""Share of a file system that must be free: ext4 keeps as much for root (mke2fs(8), `-m`)."""


class LoopCheck:
    """The event loop comes round in time."""

    name = "event_loop"
    required = False

    def __init__(self, system: System) -> None:
        self._system = system

    def look(self) -> CheckResult:
        lag, most = self._system.lag, self._system.lag_max
        facts = {"lag_ms": round(lag * 1000, 3), "lag_max_ms": round(most * 1000, 3)}
        if most < LAG_DEGRADED:
            return CheckResult(facts=facts)
        return CheckResult("degraded", f"it was up to {most:.1f} s late in the last minute", facts=facts)


def disk_checks(system: System) -> Iterator[Check]:
    """That there is space left, as last sampled: of each folder that `System.watch_folder` was told of."""
    for use, disk in system.last.disks.items():
        yield Known(f"disk:{use}", judge_disk(disk))


def judge_disk(disk: Disk) -> CheckResult:
    facts = {"free_bytes": disk.free, "used_percent": round(disk.percent, 1)} if disk.total else {}
    if disk.total and disk.free < DISK_FREE * disk.total:
        free = f"{100 * disk.free / disk.total:.1f} % of it is free, less than {100 * DISK_FREE:.0f} %"
        return CheckResult("degraded", free, facts=facts)
    if disk.written and not disk.writable:
        return CheckResult("degraded", "the folder cannot be written to", facts=facts)
    return CheckResult(facts=facts)


class SharedStore(Protocol):
    """What the Redis of the cache tells of itself."""

    reason: str
    """Why it is away; empty while it is there."""
    latency: float
    """Smoothed round-trip time in seconds."""


class RedisCheck:
    """What replicas share is there, as the connections to it know: nothing is asked for this."""

    name = "redis"
    required = False

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    def look(self) -> CheckResult:
        store = self._store
        if store.reason:
            return CheckResult("degraded", store.reason)
        return CheckResult(latency=store.latency)


def fault_checks(places: Callable[[], list[str]]) -> Callable[[], Iterator[Check]]:
    """That faults are injected on purpose at these places; no check at all where none is in force."""

    def checks() -> Iterator[Check]:
        if active := places():
            reason = "faults are injected on purpose"
            yield Known("faults", CheckResult("degraded", reason, facts={"active": active}))

    return checks


class StoreQuestion:
    """Asks the store of batches for anything, so that one that hangs is known before a batch needs it."""

    name = "batch"
    required = False

    def __init__(self, ask: Callable[[], Awaitable[object]]) -> None:
        """`ask` may raise what it likes."""
        self._ask = ask

    async def look(self) -> CheckResult:
        await self._ask()
        return CheckResult()


class BatchCheck:
    """The store of batches: trouble that a batch had with it at once, else what it last answered."""

    name = "batch"
    required = False

    def __init__(self, trouble: Callable[[], str], asked: Check) -> None:
        """`trouble` is why it cannot be used, empty while it can."""
        self._trouble = trouble
        self._asked = asked

    def look(self) -> CheckResult:
        trouble = self._trouble()
        return CheckResult("degraded", trouble) if trouble else self._asked.look()

"""What each check makes of what it sees."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sidecar.decisions.breaker import Breaker, State
from sidecar.decisions.verdict import Verdict
from sidecar.telemetry.checks import INTERVAL, CheckResult, Looked, Polled, Since
from sidecar.telemetry.health import overall
from sidecar.telemetry.history import STEP, History, HistoryKeeper
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.own_checks import DISK_FREE, BatchCheck, StoreQuestion, disk_checks, judge_disk
from sidecar.telemetry.system import Disk, System
from sidecar.telemetry.upstream_checks import FEWEST, WINDOW, UpstreamChecks
from tests.support.clock import ManualClock

TOTAL = 1 << 40


@pytest.mark.parametrize(
    ("disk", "status", "reason"),
    [
        (Disk(TOTAL, TOTAL // 2, True), "healthy", ""),
        (Disk(TOTAL, int(TOTAL * DISK_FREE) + 1, True), "healthy", ""),
        (Disk(TOTAL, int(TOTAL * 0.031), True), "degraded", "3.1 % of it is free, less than 5 %"),
        (Disk(TOTAL, 0, True), "degraded", "0.0 % of it is free, less than 5 %"),
        (Disk(TOTAL, TOTAL, False), "degraded", "the folder cannot be written to"),
        (Disk(TOTAL, TOTAL, False, written=False), "healthy", ""),
        (Disk(0, 0, True), "healthy", ""),
    ],
)
def test_a_disk_that_fills_up_is_degraded(disk: Disk, status: str, reason: str) -> None:
    """Below the share that must be free, or not writable where it must be; no size is no figure of it."""
    found = judge_disk(disk)
    assert (found.status, found.reason) == (status, reason)
    assert found.facts.get("free_bytes") == (disk.free if disk.total else None)


async def test_each_watched_folder_is_a_check(tmp_path: Path) -> None:
    """By its use, and of a real file system."""
    system = System(ManualClock())
    assert list(disk_checks(system)) == []
    system.watch_folder("ca", tmp_path, written=False)
    system.watch_folder("log", tmp_path / "not" / "yet")
    await system.sample()
    assert [check.name for check in disk_checks(system)] == ["disk:ca", "disk:log"]
    assert [check.look().facts["free_bytes"] for check in disk_checks(system)] == [
        system.last.disks[use].free for use in ("ca", "log")
    ]


class Traffic:
    """Upstreams with a minute behind them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.history = History(self.metrics, self.clock.now())
        self.keeper = HistoryKeeper(self.history, self.clock)
        self.checks = UpstreamChecks(self.metrics, self.history, self.clock)

    def attempts(self, name: str, **counts: int) -> None:
        for verdict, count in counts.items():
            for _ in range(count):
                self.metrics.upstream(name).attempt(Verdict(verdict), 0.02)

    def look(self, name: str) -> CheckResult:
        [found] = [check.look() for check in self.checks() if check.name == f"upstream:{name}"]
        return found


@pytest.mark.parametrize(
    ("counts", "external", "status"),
    [
        ({}, False, "healthy"),
        ({"ok": 100}, False, "healthy"),
        ({"ok": 81, "transient": 19}, False, "healthy"),
        ({"ok": 80, "transient": 20}, False, "degraded"),
        ({"transient": FEWEST - 1}, False, "healthy"),
        ({"transient": FEWEST}, False, "degraded"),
        ({"ok": 8, "quota": 2}, True, "degraded"),
        ({"ok": 8, "rate_limited": 2}, True, "healthy"),
        ({"auth": 20}, False, "healthy"),
        ({"auth": 20}, True, "degraded"),
        ({"client": 20, "negative": 20}, True, "healthy"),
    ],
)
def test_an_upstream_is_judged_by_its_traffic(counts: dict[str, int], external: bool, status: str) -> None:
    """By the share that failed, of enough attempts; a refused key counts where it is the app's own."""
    traffic = Traffic()
    traffic.metrics.upstream("maps").external = external
    traffic.attempts("maps", **counts)
    found = traffic.look("maps")
    assert found.status == status
    assert found.facts["attempts"] == sum(counts.values())
    assert (found.latency is None) is (not counts)
    if status == "degraded":
        assert found.reason.endswith("attempts failed in the last minute")


async def test_failures_are_forgotten_after_a_minute() -> None:
    """Only the last minute counts, wherever the count began."""
    traffic = Traffic()
    traffic.keeper.start()
    traffic.attempts("maps", ok=1000)
    await traffic.clock.advance(2 * WINDOW)
    traffic.attempts("maps", transient=20)
    await traffic.clock.advance(WINDOW - 2 * STEP)
    assert traffic.look("maps")[:2] == ("degraded", "20 of 20 attempts failed in the last minute")
    await traffic.clock.advance(3 * STEP)
    assert traffic.look("maps").status == "healthy"
    await traffic.keeper.close()
    assert traffic.clock.armed == 0


def test_a_breaker_that_is_not_closed_is_degraded() -> None:
    """One that a route has to itself is a check of its own; both reasons are told."""
    traffic = Traffic()
    traffic.attempts("maps", transient=20)
    for scope in ("maps", "maps/geocode"):
        breaker = Breaker()
        breaker.force(State.OPEN, None, traffic.clock.now())
        traffic.metrics.watch_breaker(scope, breaker)
    assert [check.name for check in traffic.checks()] == ["upstream:maps", "upstream:maps/geocode"]
    assert traffic.look("maps").reason == (
        "its circuit breaker is open, 20 of 20 attempts failed in the last minute"
    )
    assert traffic.look("maps/geocode").facts == {"circuit_breaker": "open"}


class Asked:
    """A check whose answers a test gives."""

    name = "store"

    def __init__(self, clock: ManualClock, *, required: bool = False) -> None:
        self.clock = clock
        self.required = required
        self.seconds = 0.0
        self.error: Exception | None = None
        self.asked = 0

    async def look(self) -> CheckResult:
        self.asked += 1
        await self.clock.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return CheckResult()


async def test_what_must_be_asked_is_asked_beside_the_traffic() -> None:
    """Its last answer is what is known, with the time it took; a look asks nothing."""
    clock = ManualClock()
    asked = Asked(clock)
    polled = Polled(asked, clock)
    polled.start()
    asked.seconds = 0.25
    assert polled.look() == CheckResult()
    await clock.advance(0.25)
    assert polled.look() == CheckResult(latency=0.25)
    for _ in range(100):
        polled.look()
    assert asked.asked == 1
    await clock.advance(INTERVAL)
    assert asked.asked == 2
    await polled.close()
    assert clock.armed == 0


@pytest.mark.parametrize(("required", "status"), [(False, "degraded"), (True, "unhealthy")])
async def test_no_answer_and_an_error_are_failures(required: bool, status: str) -> None:
    """Degraded where it is optional, unhealthy where it is required; and it heals."""
    clock = ManualClock()
    asked = Asked(clock, required=required)
    polled = Polled(asked, clock, interval=1.0, timeout=2.0)
    asked.seconds = 60.0
    polled.start()
    await clock.advance(2.0)
    assert polled.look()[:2] == (status, "no answer within 2 s")
    asked.seconds, asked.error = 0.0, OSError("disk I/O error")
    await clock.advance(1.0)
    assert polled.look()[:2] == (status, "disk I/O error")
    asked.error = None
    await clock.advance(1.0)
    assert polled.look().status == "healthy"
    await polled.close()


async def test_trouble_of_a_batch_is_known_at_once() -> None:
    """What a batch has with its store is not left to the next question."""
    trouble = ""

    async def ask() -> None:
        await asyncio.sleep(0)

    check = BatchCheck(lambda: trouble, Polled(StoreQuestion(ask), ManualClock()))
    assert check.look().status == "healthy"
    trouble = "database or disk is full"
    assert check.look()[:2] == ("degraded", "database or disk is full")


async def test_since_is_when_the_status_changed() -> None:
    """It stays while the status does; what is gone and comes back begins anew."""
    clock = ManualClock()
    since = Since(clock)
    start = clock.wall()
    well, ill = Looked(False, CheckResult()), Looked(False, CheckResult("degraded"))
    assert since.note({"redis": well}) == {"redis": start}
    await clock.advance(10)
    assert since.note({"redis": well, "faults": ill}) == {"redis": start, "faults": start + 10}
    await clock.advance(10)
    assert since.note({"redis": ill}) == {"redis": start + 20}
    await clock.advance(10)
    assert since.note({"redis": ill, "faults": ill}) == {"redis": start + 20, "faults": start + 30}


def _breaker(state: str, **facts: object) -> Looked:
    status: CheckResult = CheckResult("degraded", facts={"circuit_breaker": state, **facts})
    return Looked(False, status)


DEAD = Looked(True, CheckResult("unhealthy"))


@pytest.mark.parametrize(
    ("looked", "status"),
    [
        ([], "healthy"),
        ([Looked(True, CheckResult())], "healthy"),
        ([Looked(True, CheckResult("degraded"))], "degraded"),
        ([Looked(False, CheckResult("unhealthy"))], "degraded"),
        ([DEAD], "unhealthy"),
        ([DEAD, _breaker("closed"), _breaker("open")], "unhealthy"),
        ([DEAD, _breaker("open"), _breaker("half_open")], "critical"),
        ([DEAD, _breaker("open", mode="shadow")], "unhealthy"),
        ([_breaker("open")], "degraded"),
    ],
)
def test_the_rules_of_the_whole(looked: list[Looked], status: str) -> None:
    """Optional checks degrade at worst; a required one makes unhealthy; critical when nothing is called."""
    assert overall({str(number): it for number, it in enumerate(looked)}) == status

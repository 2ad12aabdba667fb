"""Samples of the machine and of the event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path

import pytest

from sidecar.telemetry.cgroup import Cgroup, CgroupFigures
from sidecar.telemetry.garbage import Garbage
from sidecar.telemetry.system import BEAT, BEATS_PER_SAMPLE, Sample, System
from tests.support.clock import ManualClock


async def test_lag_is_how_late_a_beat_is() -> None:
    """A sleep that lasts longer than asked for is the loop's lag; the largest is remembered."""

    class Late(ManualClock):
        late = 0.0

        def now(self) -> float:
            return super().now() + self.late

    clock = Late()
    system = System(clock)
    system.start()
    await clock.advance(BEAT / 2)
    clock.late = 0.25
    await clock.advance(BEAT / 2)
    assert system.lag == pytest.approx(0.25)
    await clock.advance(BEAT)
    assert system.lag == pytest.approx(0)
    assert system.lag_max == pytest.approx(0.25)
    await system.close()


async def test_the_machine_is_read_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start and every few beats."""
    clock = ManualClock()
    system = System(clock)
    samples = 0

    async def count() -> None:
        nonlocal samples
        samples += 1

    monkeypatch.setattr(system, "sample", count)
    system.start()
    await clock.advance(2.5 * BEATS_PER_SAMPLE * BEAT)
    assert samples == 3
    await system.close()
    assert clock.armed == 0


async def test_a_reading_that_fails_leaves_the_last_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file descriptor left, for one; the sampler goes on."""
    system = System(ManualClock())
    before = system.last

    def fail() -> Sample:
        raise OSError("too many open files")

    monkeypatch.setattr(system, "_read", fail)
    await system.sample()
    assert system.last is before
    assert before.process_resident > 1024 * 1024


async def test_samples_are_taken_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that keeps one waiting holds up no request."""
    system = System(ManualClock())
    held = threading.Event()
    read = system._read

    def slow() -> Sample:
        held.wait(10)
        return read()

    monkeypatch.setattr(system, "_read", slow)
    sampling = asyncio.create_task(system.sample())
    await asyncio.sleep(0.05)
    assert not sampling.done()
    held.set()
    await sampling


async def test_folders_are_looked_at(tmp_path: Path) -> None:
    """The space where a folder is, also before it is made."""
    system = System(ManualClock())
    system.watch_folder("ca", tmp_path / "not" / "yet")
    await system.sample()
    disk = system.last.disks["ca"]
    assert 0 < disk.free <= disk.total
    assert 0 <= disk.percent <= 100
    assert disk.writable


async def test_a_folder_that_cannot_be_looked_at_spoils_no_other_figure(tmp_path: Path) -> None:
    """It counts as one that cannot be written to, with no figure of its space; all else is sampled on."""
    system = System(ManualClock())
    system.watch_folder("ca", tmp_path / ("x" * 300))  # longer than a name may be: stat fails
    system.watch_folder("log", tmp_path)
    before = system.last
    await system.sample()
    assert system.last is not before
    assert system.last.disks["log"].writable
    ca = system.last.disks["ca"]
    assert (ca.total, ca.free, ca.writable) == (0, 0, False)


@pytest.mark.parametrize(
    ("memory_limit", "memory_used", "percent"), [(1 << 20, 1 << 19, 50.0), (1 << 20, 1 << 21, 100.0)]
)
async def test_in_a_container_its_limit_counts(memory_limit: int, memory_used: int, percent: float) -> None:
    """Memory and CPU are shares of what the container may use."""

    class Small(Cgroup):
        seconds = 5.0

        def read(self) -> CgroupFigures:
            return CgroupFigures(memory_limit, memory_used, 0.5, self.seconds)

    clock = ManualClock()
    group = Small()
    system = System(clock, group)
    assert system.last.memory_percent == percent
    await clock.advance(2.0)
    group.seconds += 0.25
    await system.sample()
    assert system.last.cpu_percent == pytest.approx(25.0)


async def test_collections_of_garbage_are_timed() -> None:
    """Each adds to the pauses, between start and close only."""

    class Slow(ManualClock):
        calls = 0

        def now(self) -> float:
            self.calls += 1
            return 0.25 * self.calls

    garbage = Garbage(Slow())
    garbage.start()
    gc.collect()
    garbage.close()
    paused = garbage.pauses
    assert paused >= 0.25
    assert garbage.longest == 0.25
    gc.collect()
    assert garbage.pauses == paused
    assert garbage.generations()[2].collections >= 2

"""Samples of the machine and of the event loop."""

from __future__ import annotations

import pytest

from sidecar.telemetry.system import BEAT, BEATS_PER_SAMPLE, System
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
    """Every few beats, and a reading that fails leaves the last figures."""
    clock = ManualClock()
    system = System(clock)
    samples = 0

    def fail() -> None:
        nonlocal samples
        samples += 1
        raise OSError("too many open files")

    monkeypatch.setattr(system, "sample", fail)
    system.start()
    await clock.advance(2.5 * BEATS_PER_SAMPLE * BEAT)
    assert samples == 2
    assert system.process_resident > 0
    await system.close()
    assert clock.armed == 0

"""How fast a queue moves, and how long the work takes that its waiters wait for. Times are seconds."""

from __future__ import annotations

from typing import Final

from sidecar.decisions.quantile import Quantile

SMOOTHING: Final = 0.1


class Turns:
    """What those who wait for a permit may expect; fed only while somebody waits."""

    __slots__ = ("_last", "_services", "gap")

    def __init__(self) -> None:
        self.gap = 0.0
        """From one turn to the next, smoothed; 0 while unknown."""
        self._services = Quantile(0.5)
        self._last: float | None = None

    @property
    def service(self) -> float:
        """Median time to the first byte, once it is one's turn; 0 while unknown."""
        return self._services.value

    def served(self, seconds: float) -> None:
        """An attempt was answered after `seconds`."""
        self._services.record(seconds)

    def given(self, now: float) -> None:
        """A waiter got its turn."""
        if self._last is not None:
            gap = now - self._last
            self.gap += (gap - self.gap) * SMOOTHING if self.gap else gap
        self._last = now

    def rest(self) -> None:
        """Nobody waits: the time to the next turn says nothing."""
        self._last = None

    def wait(self, ahead: int) -> float:
        """How long it takes until it is the turn of one with so many before it; 0 while unknown."""
        return (ahead + 1) * self.gap

"""When a worker that has died is started again: at once, and later each time it dies young.

A crash by chance costs nobody a worker; one that comes again with each start must not keep the machine busy
with starting. The delay doubles from `FIRST` up to `LONGEST` (the back-off of systemd's RestartSteps).
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 0.5
"""Seconds of the first delay."""
LONGEST: Final = 30.0
YOUNG: Final = 60.0
"""Seconds of life after which a death says nothing of those before."""


class Respawn:
    """The deaths of one place among the workers."""

    __slots__ = ("_deaths",)

    def __init__(self) -> None:
        self._deaths = 0

    def delay(self, lived: float) -> float:
        """Seconds to wait with the next start, after one that lived for so long."""
        if lived >= YOUNG:
            self._deaths = 0
        self._deaths += 1
        if self._deaths == 1:
            return 0.0
        return float(min(FIRST * 2 ** min(self._deaths - 2, 16), LONGEST))

"""How long the garbage collector of Python holds up the process."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.clock import Clock


class Generation(NamedTuple):
    """What the collector says of one of its generations, since the start."""

    collections: int
    collected: int
    uncollectable: int


class Garbage:
    """Times the collections between `start` and `close`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = 0.0
        self.pauses = 0.0
        """Seconds, all collections together: nothing else runs meanwhile."""
        self.longest = 0.0
        """Seconds."""

    def start(self) -> None:
        gc.callbacks.append(self._told)

    def close(self) -> None:
        if self._told in gc.callbacks:
            gc.callbacks.remove(self._told)

    def _told(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            self._began = self._clock.now()
            return
        pause = self._clock.now() - self._began
        self.pauses += pause
        self.longest = max(self.longest, pause)

    @staticmethod
    def generations() -> list[Generation]:
        """Youngest first."""
        return [Generation(**found) for found in gc.get_stats()]

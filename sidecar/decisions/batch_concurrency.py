"""How many lines of a batch may be in flight, and how many are fetched at a time.

Two bounds, of which the smaller holds:

* what the upstream bears, by batch: `AdaptiveLimit` of `sidecar.decisions.gradient`, which learns from the
  time to the first byte and from failures;
* what interactive traffic and the machine bear, of all batches together: `Courtesy`, additive increase and
  multiplicative decrease (Chiu and Jain, 1989), one step a `STEP`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

STEP: Final = 1.0
"""Seconds between two steps."""
TOLERANCE: Final = 1.1
"""How many times longer than alone interactive requests may take before batches give way."""
BACKOFF: Final = 0.6
HOT_BACKOFF: Final = 0.9
LEAST_HOT: Final = 4
"""Lines in flight that a busy machine leaves, as long as interactive requests do not suffer."""
GROWTH: Final = 0.05
FEWEST: Final = 3
"""Interactive requests of a route below which a step says nothing about it."""
QUIET: Final = 0.001
"""Seconds more than alone that nobody notices."""
LAG: Final = 0.1
"""Seconds of event-loop lag that are too many."""
AGING: Final = 1.002
"""By this the memory of the best time fades, a step: what was once is no measure for ever."""
HELD_FOR: Final = 1.0
"""Seconds of work that are fetched at a time."""


@dataclass(frozen=True, slots=True)
class Machine:
    """How busy the machine is, and how much it may be."""

    cpu: float
    """Percent of the machine's CPU in use."""
    cpu_target: float
    resident: int
    """Bytes that the process holds."""
    memory_target: int
    lag: float
    """Seconds by which the event loop was late."""

    @property
    def short(self) -> bool:
        """Of memory."""
        return self.resident > self.memory_target

    @property
    def hot(self) -> bool:
        return self.cpu > self.cpu_target or self.lag > LAG


class Courtesy:
    """How many lines of all batches may be in flight beside interactive traffic.

    What a route takes beside no batch, or its best since, is what it is measured by.
    """

    def __init__(self, most: int) -> None:
        """Begins with `most`: what each batch begins with is the other bound's affair."""
        self._most = most
        self._allowed = float(most)
        self._alone: dict[str, float] = {}
        self.pressure = 1.0
        """Times that interactive requests took of what they take alone, in the last step."""

    @property
    def allowed(self) -> int:
        return int(self._allowed)

    def step(self, seen: dict[str, tuple[int, float]], machine: Machine, *, busy: bool) -> None:
        """A step is over: by route, how many interactive requests there were and the seconds they took.

        `busy`: lines were in flight.
        """
        weight = total = 0.0
        for route, (count, seconds) in seen.items():
            if count < FEWEST:
                continue
            mean = seconds / count
            alone = self._alone.get(route)
            if alone is None or not busy:
                # Alone, it is measured anew: smoothed, as single steps are noisy.
                self._alone[route] = mean if alone is None else alone + (mean - alone) * 0.2
                continue
            self._alone[route] = alone = min(alone * AGING, max(mean, alone * 0.9))
            weight += count
            total += count * (mean / alone if mean > alone + QUIET else 1.0)
        self.pressure = total / weight if weight else 1.0
        if not busy:
            return
        if self.pressure > TOLERANCE:
            self._allowed *= BACKOFF
        elif machine.short or machine.hot:
            # Others may be what keeps the machine busy: then batches go on, slowly.
            self._allowed = max(min(self._allowed, float(LEAST_HOT)), self._allowed * HOT_BACKOFF)
        else:
            self._allowed += max(1.0, self._allowed * GROWTH)
        self._allowed = max(1.0, min(float(self._most), self._allowed))


def chunk_size(rate: float, machine: Machine, initial: int, least: int, most: int) -> int:
    """Lines to fetch at a time, at `rate` lines a second: `initial` before any rate is known.

    Enough for `HELD_FOR`; the fewest while memory is short.
    """
    if machine.short:
        return least
    if rate <= 0:
        return max(least, min(most, initial))
    return max(least, min(most, int(rate * HELD_FOR)))


def rating(rate: float) -> str:
    """What a throughput in lines a second is called."""
    for bound, word in ((500, "excellent"), (300, "good"), (150, "acceptable"), (50, "poor")):
        if rate >= bound:
            return word
    return "critical"

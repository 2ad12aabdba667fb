"""How many lines of a batch may be in flight, and how many are fetched at a time.

Two bounds, of which the smaller holds:

* what the upstream bears, by batch: `EagerLimit`, the `AdaptiveLimit` of `sidecar.decisions.gradient`, which
  learns from the time to the first byte and from failures, after a slow start;
* what interactive traffic and the machine bear, of all batches together: `Courtesy`, additive increase and
  multiplicative decrease (Chiu and Jain, 1989), one step a `STEP`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from sidecar.decisions.gradient import AdaptiveLimit

DELAYED: Final = 1.5
"""Of the time of the windows before: that much more is a queue, hardly chance."""
STEP: Final = 1.0
"""Seconds between two steps."""
TOLERANCE: Final = 1.1
"""How many times longer than alone interactive requests may take before batches give way."""
BACKOFF: Final = 0.5
HOT_BACKOFF: Final = 0.9
LEAST_HOT: Final = 4
"""Lines in flight that a busy machine leaves, as long as interactive requests do not suffer."""
GROWTH: Final = 0.05
SLOWEST: Final = 0.3
"""Lines that a step without pressure adds, or the share `GROWTH` of them where that is more."""
FEWEST: Final = 3
"""Interactive requests of a route below which a step says nothing about it."""
QUIET: Final = 0.001
"""Seconds more than alone that nobody notices."""
LAG: Final = 0.1
"""Seconds of event-loop lag that are too many."""
CERTAIN: Final = 2.0
"""Standard errors that are no chance."""
NOISE_SHARE: Final = 0.05
LEVEL_SHARE: Final = 0.3
ALONE_SHARE: Final = 0.2
"""What a step counts for in the smoothed figures."""
GUESSED: Final = 4
"""Steps that the first guess of how much times vary counts for."""
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


class EagerLimit(AdaptiveLimit):
    """An adaptive limit that begins by doubling, as TCP does (RFC 5681, 3.1).

    A batch of a thousand lines is over before small steps have come far. The doubling ends, as in HyStart (Ha
    and Rhee, 2011), once a window takes `DELAYED` times as long as those before, or an attempt fails as those
    do that are too many. The limit is then what it was before the last doubling.

    Every other window is passed over: what is answered first after a change is what was in flight before it,
    and of what was begun together it is the fastest.
    """

    __slots__ = ("_doubling", "_proven", "_samples", "_seconds", "_settled")

    def __init__(self, initial: int, min: int, max: int) -> None:  # noqa: A002 - as `AdaptiveLimit`
        super().__init__(initial, min, max)
        self._doubling = True
        self._settled = False
        self._proven = float(initial)
        self._samples = 0
        self._seconds = 0.0

    def drop(self, started: float, now: float) -> None:
        self._doubling = False
        super().drop(started, now)

    def _learn(self, short: float) -> None:
        before, used = self._estimate, self._peak
        super()._learn(short)
        if not self._doubling:
            return
        self._settled = not self._settled
        if self._settled:
            return
        if self._samples and short > DELAYED * self._seconds / self._samples:
            self._doubling = False
            self._settle(self._proven)
            return
        self._samples += self._size
        self._seconds += short * self._size
        if used >= before / 2:
            self._proven = before
            self._settle(before * 2)
            self._doubling = self._estimate < self._max


class _Usual:
    """How long interactive requests of a route take."""

    __slots__ = ("alone", "level", "steps", "variance")

    def __init__(self, mean: float) -> None:
        self.alone = mean
        """Seconds beside no batch."""
        self.level = mean
        """Seconds of the last steps, smoothed."""
        self.variance = (mean / 2) ** 2
        """Of single requests; a guess, until steps without a batch say more."""
        self.steps = 1
        """Without a batch."""

    def see(self, mean: float, count: int, *, busy: bool) -> float:
        """A step's mean; how many times longer than alone requests take, 1 where that may be chance."""
        before = self.level
        self.level += (mean - self.level) * LEVEL_SHARE
        if not busy:
            # Only then: what a batch does to the times must not pass for chance.
            self.steps += 1
            share = max(NOISE_SHARE, 1 / (self.steps + GUESSED))
            self.variance += ((mean - before) ** 2 * count - self.variance) * share
            self.alone += (mean - self.alone) * ALONE_SHARE
            return 1.0
        error = CERTAIN * math.sqrt(self.variance / count)
        # The level is a mean of several steps: the error of an exponentially weighted average.
        smooth = error * math.sqrt(LEVEL_SHARE / (2 - LEVEL_SHARE))
        self.alone *= AGING
        bound = min(mean + error, self.level + smooth)
        if bound < self.alone:
            self.alone += (bound - self.alone) * ALONE_SHARE
        ratio = 1.0
        for seconds, doubt in ((mean, error), (self.level, smooth)):
            if seconds - self.alone > max(QUIET, doubt):
                ratio = max(ratio, seconds / self.alone)
        return ratio


class Courtesy:
    """How many lines of all batches may be in flight beside interactive traffic.

    What a route takes beside no batch is what it is measured by. Times that vary by themselves are no reason
    to give way: a step's mean, or that of several, has to differ by more than chance explains.
    """

    def __init__(self, most: int) -> None:
        """Begins with `most`: what each batch begins with is the other bound's affair."""
        self._most = most
        self._allowed = float(most)
        self._usual: dict[str, _Usual] = {}
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
            usual = self._usual.get(route)
            if usual is None:
                self._usual[route] = _Usual(mean)
                continue
            weight += count
            total += count * usual.see(mean, count, busy=busy)
        self.pressure = total / weight if weight else 1.0
        if not busy:
            return
        if self.pressure > TOLERANCE:
            self._allowed *= BACKOFF
            for usual in self._usual.values():  # what was before is no evidence of what is now
                usual.level = usual.alone
        elif machine.short or machine.hot:
            # Others may be what keeps the machine busy: then batches go on, slowly.
            self._allowed = max(min(self._allowed, float(LEAST_HOT)), self._allowed * HOT_BACKOFF)
        else:
            self._allowed += max(SLOWEST, self._allowed * GROWTH)
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

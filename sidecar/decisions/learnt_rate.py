"""A rate that finds a quota which nobody states: from refusals, and from what was accepted between them.

Turns are given out by GCRA (ITU-T I.371, the virtual scheduling algorithm): one each 1 / rate seconds, and
`burst` at once after a rest. The rate moves as a TCP sender's does (Chiu and Jain 1989, additive increase and
multiplicative decrease; RFC 9438, CUBIC, 4.6 and 4.7; the AWS SDKs' adaptive retry mode paces by CUBIC too):

* Refused, it goes down by a twentieth, and to what was accepted in a second of the cycle that ends, if that
  is less: counted up to the moment when the provider accepts again, that is the provider's own rate.
* While turns have to be waited for it goes up, by 3 % a minute of the rate that was refused last: by time and
  not by turns (RFC 9438, 3.2), so that a quota a minute is overshot by no more than that. A tenth above, the
  quota has changed: then by 1 % of itself a second.
* All that are refused together count once (RFC 6582, 3.2: `recover`).
"""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = float("inf")
LATENESS: Final = 0.020
"""Seconds that a turn may be taken late without delaying the next: what timers are late by."""
DECREASE: Final = 0.95
INCREASE: Final = 0.0005
"""Share of the rate that was refused last, a second."""
MOVED: Final = 1.1
FASTER: Final = 0.01
ROUNDED_UP: Final = 1.0
MOST_DECREASE: Final = 0.25
LEAST: Final = 1 / 60
"""Turns a second; a quota that allows less is found by waiting, not by pacing."""
REST: Final = 5.0
"""Intervals without a turn after which a new cycle begins: an idle hour says nothing of the quota."""


class LearntRate:
    """`now` is monotonic seconds. `rate` None: unknown until a refusal, and nobody waits."""

    __slots__ = ("_began", "_last", "_learn", "_top", "accepted", "burst", "rate", "tat")

    def __init__(self, rate: float | None, burst: int, *, learn: bool) -> None:
        """Raises ValueError for a rate or a burst that lets nothing through."""
        if (rate is not None and rate <= 0) or burst < 1:
            raise ValueError("a rate and a burst let something through")
        self.rate = UNKNOWN if rate is None else rate
        self.burst = burst
        self.tat = float("-inf")
        """Theoretical arrival time: when the next turn is due if none is taken early."""
        self._learn = learn
        self._top = self.rate
        """The rate when it was refused last, or at the start."""
        self._began = float("-inf")
        self.accepted = 0
        """Requests that the provider accepted in this cycle: counted by who hears of it."""
        self._last = float("-inf")

    def turn(self, *, low: bool) -> float:
        """When the next request may go. A batch request (`low`) leaves the burst to the others."""
        if low or self.burst == 1 or self.rate == UNKNOWN:
            return self.tat
        return self.tat - (self.burst - 1) / self.rate

    def take(self, now: float) -> None:
        last, self._last = self._last, now
        if self.rate == UNKNOWN:
            if now - last > 1.0:
                self._began, self.accepted = now, 0
            return
        interval = 1.0 / self.rate
        if self.tat < now - LATENESS:
            if now - self.tat > REST * interval:
                self._began, self.accepted = now, 0
            self.tat = now + interval
            return
        if self._learn:
            share = INCREASE * self._top if self.rate < MOVED * self._top else FASTER * self.rate
            self.rate += share * interval
        self.tat += interval

    def refused(self) -> None:
        """The first refusal of a cycle. `resume` must follow."""
        if self._learn and self.rate != UNKNOWN:
            self._top = self.rate
            self.rate = max(self.rate * DECREASE, LEAST)

    def resume(self, at: float, now: float) -> None:
        """The provider accepts again from `at` on: at `now` it has accepted a request, or else the next
        turn is at `at`.
        """
        if self._learn:
            # Retry-After is rounded up to whole seconds: after a cycle that was no shorter, it may mean less.
            early = min(ROUNDED_UP, at - now, now - self._began)
            goodput = max(self.accepted, 1) / max(at - early - self._began, 0.001)
            if self.rate == UNKNOWN:
                self.rate = self._top = max(goodput * DECREASE, LEAST)
            else:
                self.rate = max(min(self.rate, max(goodput, self._top * MOST_DECREASE)), LEAST)
        self._began, self.accepted = at, 0
        self.tat = at if at > now else at + 1.0 / self.rate

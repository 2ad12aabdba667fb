"""When requests arrive: rates over time, and the moments that come of them. Pure.

An open model: arrivals do not wait for answers, so that a server that stands still is asked all the same
(B. Schroeder, A. Wierman and M. Harchol-Balter, "Open Versus Closed: A Cautionary Tale", NSDI 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """A time in which the rate changes steadily from `start` to `end`."""

    seconds: float
    start: float
    """Requests a second, as `end`."""
    end: float

    @property
    def requests(self) -> float:
        """How many are expected."""
        return self.seconds * (self.start + self.end) / 2


def ramp(users: int, requests: int, seconds: float) -> Segment:
    """The ramp of `users` who make `requests` each, with the users coming in evenly over `seconds`.

    Expected are users · requests arrivals, at a rate that rises with the users who are there:
    rate(t) = 2 · users · requests · t / seconds².
    """
    return Segment(seconds, 0.0, 2.0 * users * requests / seconds)


def shortened(segments: Sequence[Segment], share: float) -> tuple[Segment, ...]:
    """The same rates for a share of the time."""
    return tuple(segment._replace(seconds=segment.seconds * share) for segment in segments)


def due_times(segments: Sequence[Segment], uniform: Callable[[], float] | None = None) -> Iterator[float]:
    """The moments of arrival, in seconds from the start.

    `uniform` draws from [0, 1): arrivals are a Poisson process, by inversion of its cumulative rate
    (E. Çinlar, "Introduction to Stochastic Processes", 1975, 4.7). None: evenly spaced in that rate.
    """
    began = 0.0
    passed = 0.0
    wanted = _step(uniform) if uniform is not None else 0.0
    for segment in segments:
        while wanted < passed + segment.requests:
            yield began + _when(segment, wanted - passed)
            wanted += _step(uniform)
        began += segment.seconds
        passed += segment.requests


def _step(uniform: Callable[[], float] | None) -> float:
    return 1.0 if uniform is None else -math.log(1.0 - uniform())


def _when(segment: Segment, requests: float) -> float:
    """Seconds into the segment after which so many are expected to have come."""
    slope = (segment.end - segment.start) / segment.seconds
    root = math.sqrt(segment.start**2 + 2.0 * slope * requests)
    # Of both forms of the quadratic's solution, the one that does not divide by a slope of nearly zero.
    return 2.0 * requests / (segment.start + root) if requests else 0.0

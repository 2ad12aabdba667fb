"""Durations by bucket, as plain integers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from sidecar.decisions.buckets import STANDARD

Exemplar = tuple[bytes, float, float]
"""Trace id, seconds observed, and `Clock.now()` when they were."""


class Histogram:
    """Counts by bucket, not yet cumulated; the last bucket is `+Inf`."""

    __slots__ = ("bounds", "buckets", "exemplars", "seconds")

    def __init__(self, bounds: tuple[float, ...] = STANDARD) -> None:
        """`bounds` are the upper bounds of the buckets in seconds, ascending."""
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.seconds = 0.0
        self.exemplars: list[Exemplar | None] = [None] * len(self.buckets)

    def observe(self, seconds: float) -> None:
        self.buckets[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        return sum(self.buckets)

    @classmethod
    def sum_of(cls, parts: Sequence[Histogram]) -> Histogram:
        """All of them together, without their exemplars; they have the same bounds, and there is one."""
        whole = cls(parts[0].bounds)
        for part in parts:
            whole.buckets = [a + b for a, b in zip(whole.buckets, part.buckets, strict=True)]
            whole.seconds += part.seconds
        return whole

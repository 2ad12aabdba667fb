"""How many events fell into the last seconds: a ring of time buckets, constant work per event."""

from __future__ import annotations


class SlidingCount:
    """Counts events over the last `buckets` × `width` seconds.

    The bucket that is filling counts as a whole, so what is seen reaches back between
    (`buckets` - 1) × `width` and `buckets` × `width` seconds. Buckets start at multiples of `width`:
    counts of one width turn over together. `now` must not go backwards.
    """

    __slots__ = ("_bucket", "_counts", "_slot", "_total", "_turn", "_width")

    def __init__(self, width: float, buckets: int) -> None:
        if width <= 0 or buckets < 1:
            raise ValueError("a sliding count needs a width above zero and at least one bucket")
        self._width = width
        self._counts = [0] * buckets
        self._slot = 0
        self._total = 0
        self._bucket = 0
        self._turn = float("-inf")
        """When the bucket that is filling ends. A comparison of floats allocates nothing."""

    def add(self, now: float) -> None:
        if now >= self._turn:
            self._rotate(now)
        self._counts[self._slot] += 1
        self._total += 1

    def total(self, now: float) -> int:
        if now >= self._turn:
            self._rotate(now)
        return self._total

    def clear(self) -> None:
        self._counts = [0] * len(self._counts)
        self._total = 0

    def _rotate(self, now: float) -> None:
        counts = self._counts
        bucket = int(now / self._width)
        steps = bucket - self._bucket
        if steps >= len(counts):
            self.clear()
            self._slot = 0
        else:
            for _ in range(steps):
                self._slot = (self._slot + 1) % len(counts)
                self._total -= counts[self._slot]
                counts[self._slot] = 0
        self._bucket = bucket
        self._turn = (bucket + 1) * self._width

"""Whether an origin fails, by what its last fills came to, and when to look whether it is back.

What Varnish's health-aware grace is for: a stale answer is kept short while the origin is well, and long
while it is not. There the health is polled; here the traffic itself tells. `now` is monotonic seconds.
"""

from __future__ import annotations

from typing import Final

STREAK: Final = 3
"""Failures in a row, with no success between them, that count: one URL that always fails is not an origin
that does, as the others succeed meanwhile."""
MEMORY: Final = 10
"""Probe intervals after which a failure says nothing any more: nobody has asked since."""


class Health:
    """What is known of one origin."""

    __slots__ = ("_failing", "_looked", "_seen", "_streak")

    def __init__(self) -> None:
        self._streak = 0
        self._failing = False
        self._seen = 0.0
        """When it last failed."""
        self._looked = 0.0
        """When it was last asked, as far as it failed."""

    def succeeded(self) -> None:
        self._streak = 0
        self._failing = False

    def failed(self, now: float, *, certain: bool) -> None:
        """A fill failed. `certain`: nothing listens there, or a circuit breaker has seen enough already."""
        self._streak += 1
        self._seen = self._looked = now
        self._failing = self._failing or certain or self._streak >= STREAK

    def failing(self, now: float, interval: float) -> bool:
        """Whether asking is likely to be in vain."""
        return self._failing and now - self._seen < interval * MEMORY

    def may_probe(self, now: float, interval: float) -> bool:
        """Whether it is time to look again; then the next who asks waits for another interval."""
        if now - self._looked < interval:
            return False
        self._looked = now
        return True


def failed_lately(failed_at: float, now: float, interval: float) -> bool:
    """The same of a single URL; `failed_at` is 0 where its last fill did not fail."""
    return failed_at > 0.0 and now - failed_at < interval * MEMORY

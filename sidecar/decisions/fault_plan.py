"""Which attempts an injected fault hits, and what time it takes from them."""

from __future__ import annotations


class FaultPlan:
    """The schedule of one fault: counts the attempts that it is asked about.

    An attempt is hit when all that is set agrees: it is among the `first`, it is an `every`-th one
    (counted from 1), and chance falls within `share` (of 1). `delay` is the shortest and the longest
    wait in seconds. Chance is numbers in [0, 1) that the caller draws.
    """

    __slots__ = ("_every", "_first", "_least", "_most", "_share", "asked", "hit")

    def __init__(
        self,
        share: float = 1.0,
        every: int | None = None,
        first: int | None = None,
        delay: tuple[float, float] | None = None,
    ) -> None:
        self._share = share
        self._every = every or 1
        self._first = first
        self._least, self._most = delay or (0.0, 0.0)
        self.asked = 0
        """Attempts that it was asked about."""
        self.hit = 0
        """Of these, the ones that it hit."""

    @property
    def over(self) -> bool:
        """No attempt will be hit any more."""
        return self._first is not None and self.asked >= self._first

    def hits(self, chance: float) -> bool:
        """Whether the next attempt is hit."""
        self.asked += 1
        if self._first is not None and self.asked > self._first:
            return False
        if self.asked % self._every or chance >= self._share:
            return False
        self.hit += 1
        return True

    def delay(self, chance: float) -> float:
        """Seconds that an attempt waits; 0 where no delay is set."""
        return self._least + (self._most - self._least) * chance

"""A quantile of how long attempts lately took, kept in one number.

The estimator is DUMIQE (A. Yazidi and H. L. Hammer, "Multiplicative Update Methods for Incremental Quantile
Estimation", IEEE Transactions on Cybernetics 49(3), 2019): an observation above the estimate raises it by
`GAIN` · q of itself, any other lowers it by `GAIN` · (1 - q), so that it rests where a share q is not above
it. Whatever the distribution, the rises and falls even out: over some hundreds of observations a share of
1 - q lies above the estimate of its moment, and that is how many hedges at a percentile have to be paid
for. Steps are proportional, so milliseconds and minutes are followed equally well.

Only the side of the estimate on which an observation lies counts. So an attempt that was given up after
a longer time is a full observation too. The first ones are ranked, as a bad start would be slow to mend.
"""

from __future__ import annotations

import math
from bisect import insort
from typing import Final

GAIN: Final = 0.05
"""A larger one follows faster and trembles more: some 10 % around the true value for usual latencies."""
SEEDS: Final = 20
"""Observations before there is an estimate: the fewest of which one lies above the 95th percentile."""
LEAST: Final = 1e-4
"""Seconds; no estimate is lower, as no step leads away from zero."""


class Quantile:
    """The quantile `share` (0.95: 95 % are no longer) of the seconds that `record` is told."""

    __slots__ = ("_down", "_seeds", "_up", "share", "value")

    def __init__(self, share: float) -> None:
        """Raises ValueError when `share` is not between 0 and 1."""
        if not 0 < share < 1:
            raise ValueError("a quantile lies between 0 and 1")
        self.share = share
        self.value = 0.0
        """Seconds; 0 while too little was seen to tell."""
        # 1 + x and 1 - x in the paper: like this they even out exactly.
        self._up = math.exp(GAIN * share)
        self._down = math.exp(-GAIN * (1 - share))
        self._seeds: list[float] | None = []

    def record(self, seconds: float) -> None:
        if self._seeds is not None:
            self._seed(self._seeds, seconds)
        elif seconds > self.value:
            self.value *= self._up
        else:
            value = self.value * self._down
            self.value = value if value > LEAST else LEAST

    def _seed(self, seeds: list[float], seconds: float) -> None:
        insort(seeds, seconds)
        if len(seeds) == SEEDS:
            self.value = max(seeds[math.ceil(self.share * SEEDS) - 1], LEAST)
            self._seeds = None

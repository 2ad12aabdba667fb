"""Bounds of histogram buckets, and what can be told from the counts in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

STANDARD: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Seconds. For most apps; it holds the thresholds that alerts and stress scenarios name (0.5, 1, 1.5, 2, 3
and 10 s), so that a quantile can be compared with them without an error of interpolation."""

PROFILES: Final[dict[str, tuple[float, ...]]] = {
    "standard": STANDARD,
    "fast": (
        0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075,
        0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 10.0,
    ),
    "slow": (
        0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    ),
}  # fmt: skip
"""By name: `fast` for answers within milliseconds, `slow` for those of language models. Each has 2 s and
10 s, which the alerts SlowResponses and ExternalServiceTimeout compare with."""


def histogram_quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """The value that `share` of the observations do not exceed; None where there are none.

    `counts` are not cumulated, and have one more, of what is above all `bounds`. Interpolated within a
    bucket as Prometheus does (`histogram_quantile`): what is above all bounds counts as the last of them.
    """
    whole = sum(counts)
    if not whole:
        return None
    rank = share * whole
    below = 0
    for index, upto in enumerate(accumulate(counts)):
        if upto >= rank and upto > below:
            if index == len(bounds):
                break
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * max(rank - below, 0.0) / (upto - below)
        below = upto
    return bounds[-1]

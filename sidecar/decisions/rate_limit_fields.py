"""What a client is told of its rate limit, by the fields of draft-ietf-httpapi-ratelimit-headers-10.

    RateLimit-Policy: "default";q=1000;w=60      1000 requests in 60 seconds
    RateLimit: "default";r=19;t=1                19 may come now; the whole burst again in one second

`r` is what is left of the burst, not of `q`: more would not pass at once.
"""

from __future__ import annotations

import math
from typing import Final

_PERIODS: Final = (1, 60, 3600, 86400)
_EXACT: Final = 1e-9


def policy(rate: float) -> bytes:
    """The value of `RateLimit-Policy` for a rate per second."""
    return b'"default";q=%d;w=%d' % quota(rate)


def quota(rate: float) -> tuple[int, int]:
    """Whole requests in whole seconds: in the shortest of a second, minute, hour and day that has it so."""
    for period in _PERIODS:
        count = rate * period
        if count > 0.5 and abs(count - round(count)) <= _EXACT * count:
            return round(count), period
    if rate < 1:
        return 1, round(1 / rate)
    return int(rate * _PERIODS[-1]), _PERIODS[-1]


def state(left: int, burst: int, rate: float) -> bytes:
    """The value of `RateLimit` when so many are left of the burst: it is whole again by then, or sooner."""
    return b'"default";r=%d;t=%d' % (left, math.ceil(round((burst - left) / rate, 6)))

"""How often a client may come: the generic cell rate algorithm, for many clients at once.

GCRA (ATM Forum, Traffic Management 4.1; ITU-T I.371), as virtual scheduling: of a client only one number is
kept, the theoretical arrival time (TAT) of its next request. A request adds one emission interval, 1 / rate,
to it, and conforms while that leaves the TAT within the tolerance of now. The tolerance here is
`burst` intervals, the request's own included, so `burst` requests may come at once, and then one each
interval. A request that does not conform changes nothing: who keeps knocking waits no longer than who waits.

All times are seconds on one monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MOST: Final = 65_536
"""Clients that are remembered, by default: about 12 MiB."""
_ROUNDING: Final = 1e-6
"""Sums of intervals are off by less; a request that comes a microsecond too early may pass."""


class Buckets:
    """The TATs of clients, the last `most` of them. Constant work per request.

    A client is forgotten when its TAT is past, for that is as good as never having come; and, when more than
    `most` come within the time of a burst, the one that has not come for longest.
    """

    __slots__ = ("_arrivals", "interval", "most", "tolerance")

    def __init__(self, rate: float, burst: int, most: int = MOST) -> None:
        """`rate` is per second. Raises ValueError where nothing could pass."""
        if rate <= 0 or burst < 1 or most < 1:
            raise ValueError("a rate limit lets at least one through")
        self.interval = 1.0 / rate
        self.tolerance = burst * self.interval
        self.most = most
        self._arrivals: OrderedDict[str | bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._arrivals)

    def take(self, client: str | bytes, now: float) -> float:
        """Lets a request pass, or not.

        More than zero: it passes, and after so many seconds without another the whole burst is there again.
        Less: it does not pass, but one would in so many seconds.
        """
        arrivals = self._arrivals
        arrival = arrivals.get(client)
        if arrival is None or arrival < now:
            if arrival is None:
                self._make_room(now)
            arrival = now
        arrival += self.interval
        ahead = arrival - now
        if ahead > self.tolerance + _ROUNDING:
            return self.tolerance - ahead
        arrivals[client] = arrival
        arrivals.move_to_end(client)
        return ahead

    def charge(self, client: str | bytes, count: int, now: float) -> None:
        """Takes in that `count` requests were let through elsewhere, as if they had come here."""
        arrivals = self._arrivals
        arrival = arrivals.get(client)
        if arrival is None:
            self._make_room(now)
        arrivals[client] = max(arrival or now, now) + count * self.interval
        arrivals.move_to_end(client)

    def _make_room(self, now: float) -> None:
        """Forgets up to two that have not come for longest: more leave than come, while they may."""
        arrivals = self._arrivals
        for _ in range(2):
            if not arrivals:
                return
            oldest, arrival = next(iter(arrivals.items()))
            if arrival > now and len(arrivals) < self.most:
                return
            del arrivals[oldest]

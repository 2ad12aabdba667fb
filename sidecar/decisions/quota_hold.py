"""Holding back all requests while the provider's quota is used up, and finding out when it is back.

Closed, nothing is held. A `quota` verdict holds everything until a time; after that a single request may
probe. Its answer ends the hold, or begins another of the same rule; a probe without a telling answer
(cancelled, broken, 5xx) leaves it to the next one.
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 86400.0
"""Seconds: nothing is held for longer, whatever a provider asks. Quotas are renewed within a day, and credit
that was bought should be found."""
PROBING: Final = 1.0
"""Seconds to tell those who come while a probe is under way."""


class Hold:
    """`seconds`: how long, where the provider does not say; None: nothing is ever held."""

    __slots__ = ("_seconds", "_until", "active", "probe")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._until = float("-inf")
        self.active = False
        self.probe = -1
        """Number of the request that probes; -1: none."""

    def begin(self, now: float, asked: float | None) -> bool:
        """The quota is used up; True where that holds back what comes."""
        if self._seconds is None:
            return False
        self._until = now + min(asked if asked is not None else self._seconds, LONGEST)
        self.active = True
        self.probe = -1
        return True

    @property
    def until(self) -> float | None:
        """When one may probe (monotonic seconds); None: nothing is held."""
        return self._until if self.active else None

    def told(self, until: float | None) -> None:
        """Another process has found out that the quota is used up, until then; None: that it is back."""
        if until is None:
            self.end()
        elif self._seconds is not None:
            self._until = until
            self.active = True
            self.probe = -1

    def end(self) -> None:
        self.active = False
        self.probe = -1

    def left(self, now: float) -> float:
        """Seconds that a request which comes now is to be told to wait; 0: it may go, and is the probe."""
        if not self.active:
            return 0.0
        if now < self._until:
            return self._until - now
        return PROBING if self.probe >= 0 else 0.0

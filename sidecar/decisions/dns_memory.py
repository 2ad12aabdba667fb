"""How long an answer of the DNS is used, and what is done when none comes (RFC 2308, RFC 8767, RFC 9520)."""

from __future__ import annotations

from enum import Enum
from typing import Final

LEAST: Final = 5.0
"""Seconds that addresses are used, however short their TTL."""
MOST: Final = 3600.0
"""Seconds that they are used at most: a TTL of days would keep calls at a server that moved."""
REFRESHED_AT: Final = 0.8
"""Share of their time after which they are asked for again, behind a look-up that still has them."""
ABSENT_LEAST: Final = 1.0
ABSENT_MOST: Final = 30.0
"""Seconds for which a name without addresses is known to have none: it may be about to get some."""
FAILED: Final = 2.0
"""Seconds for which a failed question is not repeated while there is nothing to go on with (RFC 9520, 3.2);
they double with each further failure, up to `RECHECK`."""
STALE: Final = 86400.0
"""Seconds after its time during which an answer serves while the DNS fails (RFC 8767, 5: one to three
days)."""
RECHECK: Final = 30.0
"""Seconds between two questions of a DNS that fails, while a stale answer serves (RFC 8767, 5)."""


class Standing(Enum):
    """What a look-up can do with what is known."""

    FRESH = "fresh"
    DUE = "due"
    """Fresh, and to be asked for again meanwhile."""
    EXPIRED = "expired"
    """To be asked for again, and good if that fails."""
    STALE = "stale"
    """Expired, and asking again has just failed."""
    ABSENT = "absent"
    """It is known, and fresh, that there are none."""
    FAILED = "failed"
    """Nothing is known, and asking has just failed."""
    UNKNOWN = "unknown"


class Memory:
    """What is known of the addresses of one name and family. Times are monotonic seconds."""

    __slots__ = ("_answered", "_ask_at", "_due_at", "_failures", "_fresh_until", "addresses", "failure")

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ()
        self.failure = ""
        """Why the last question had no answer; empty after an answer."""
        self._failures = 0
        """In a row."""
        self._answered = False
        self._fresh_until = float("-inf")
        self._due_at = float("-inf")
        self._ask_at = float("-inf")
        """When a DNS that failed may be asked again."""

    def learn(self, addresses: tuple[str, ...], ttl: float, now: float) -> None:
        """An answer came: `addresses`, none perhaps, to be used for `ttl` seconds."""
        least, most = (LEAST, MOST) if addresses else (ABSENT_LEAST, ABSENT_MOST)
        lifetime = min(max(ttl, least), most)
        self.addresses = addresses
        self.failure = ""
        self._failures = 0
        self._answered = True
        self._fresh_until = now + lifetime
        self._due_at = now + lifetime * REFRESHED_AT
        self._ask_at = float("-inf")

    def fail(self, why: str, now: float) -> None:
        """No answer came."""
        self.failure = why
        self._failures += 1
        if now < self._fresh_until + STALE:
            self._ask_at = now + RECHECK
        else:
            self.addresses = ()
            self._answered = False
            self._ask_at = now + min(FAILED * 2.0 ** min(self._failures - 1, 8), RECHECK)

    def usable(self, now: float) -> tuple[str, ...]:
        """The addresses, where they are fresh or may serve as stale ones."""
        return self.addresses if now < self._fresh_until + STALE else ()

    def standing(self, now: float) -> Standing:
        if now < self._fresh_until:
            if not self.addresses:
                return Standing.ABSENT
            return Standing.DUE if self._due_at <= now and self._ask_at <= now else Standing.FRESH
        if self._answered and now < self._fresh_until + STALE:
            return Standing.STALE if now < self._ask_at else Standing.EXPIRED
        return Standing.FAILED if now < self._ask_at else Standing.UNKNOWN

"""The verdict on an answer: one word that retry, breaker, cache, pacing and fallback act on."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    OK = "ok"
    NEGATIVE = "negative"
    """A valid answer that says "there is none"."""
    TRANSIENT = "transient"
    """May well succeed when repeated."""
    RATE_LIMITED = "rate_limited"
    """Too fast: the same request will succeed later."""
    QUOTA = "quota"
    """Nothing will succeed until the provider's quota is renewed."""
    AUTH = "auth"
    CLIENT = "client"
    """The request itself is at fault."""


class Outcome(Enum):
    """What a verdict means to a breaker or a limiter."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORE = "ignore"


OUTCOMES: dict[Verdict, Outcome] = {
    Verdict.OK: Outcome.SUCCESS,
    Verdict.NEGATIVE: Outcome.SUCCESS,
    Verdict.TRANSIENT: Outcome.FAILURE,
    Verdict.RATE_LIMITED: Outcome.IGNORE,
    Verdict.QUOTA: Outcome.IGNORE,
    Verdict.AUTH: Outcome.IGNORE,
    Verdict.CLIENT: Outcome.SUCCESS,
}


def by_status(status: int) -> Verdict:
    """The verdict where no rule has a say.

    408 and 425 ask to be repeated (RFC 9110, 15.5.9; RFC 8470, 5.2). 501 and 505 will not change by
    repeating, but they are the upstream's fault, and so are all other 5xx.
    """
    if status < 400:
        return Verdict.OK
    if status >= 500 or status in (408, 425):
        return Verdict.TRANSIENT
    if status == 429:
        return Verdict.RATE_LIMITED
    if status in (401, 403, 407):
        return Verdict.AUTH
    return Verdict.CLIENT


BY_STATUS: tuple[Verdict, ...] = tuple(by_status(status) for status in range(1000))
"""`by_status` as a table, for the request path."""

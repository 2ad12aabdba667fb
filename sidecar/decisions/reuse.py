"""What a stored response is good for, now and for this request (RFC 9111, 4; RFC 5861)."""

from __future__ import annotations

from enum import Enum
from typing import Final

from sidecar.decisions.cache_control import NOTHING_ASKED, RequestDirectives
from sidecar.decisions.freshness import Lifetime
from sidecar.decisions.verdict import Verdict

ERRORS: Final = frozenset({500, 502, 503, 504})
"""Statuses that a stale response may stand in for (RFC 5861, 4)."""


class Use(Enum):
    FRESH = "fresh"
    """Serve it."""
    STALE_WHILE_REVALIDATE = "stale-while-revalidate"
    """Serve it, and refresh it in the background."""
    STALE_ALLOWED = "stale-allowed"
    """Serve it: the client takes it stale (`max-stale`)."""
    VALIDATE = "validate"
    """Ask the origin first; where it cannot say, see `may_serve_on_error`."""
    MISS = "miss"
    """Nothing stored, or past all use: fetch."""
    BYPASS = "bypass"
    """The client wants no cache (`no-store`): fetch, store nothing."""
    ONLY_IF_CACHED = "only-if-cached"
    """The client wants nothing but a cache's answer, and there is none: 504 (RFC 9111, 5.2.1.7)."""


# Globals are found faster than members of an Enum.
_FRESH: Final = Use.FRESH
_STALE_WHILE_REVALIDATE: Final = Use.STALE_WHILE_REVALIDATE
_VALIDATE: Final = Use.VALIDATE


def judge_use(lifetime: Lifetime | None, directives: RequestDirectives, now: float) -> Use:
    """What to do for a request; `lifetime` None where nothing is stored, `now` in Unix seconds."""
    if directives is NOTHING_ASKED and lifetime is not None and not lifetime.always_validate:
        if now < lifetime.fresh_until:
            return _FRESH
        if now < lifetime.swr_until:
            return _STALE_WHILE_REVALIDATE
        return _VALIDATE if now < lifetime.kept_until else Use.MISS
    use = _judge(lifetime, directives, now)
    if directives.only_if_cached and use in {_VALIDATE, Use.MISS, Use.BYPASS}:
        return Use.ONLY_IF_CACHED
    return use


def _judge(lifetime: Lifetime | None, directives: RequestDirectives, now: float) -> Use:
    if directives.no_store:
        return Use.BYPASS
    if lifetime is None or now >= lifetime.kept_until:
        return Use.MISS
    if directives.no_cache or lifetime.always_validate:
        return _VALIDATE
    if directives.max_age is not None and now - lifetime.born >= directives.max_age:
        return _VALIDATE
    left = lifetime.fresh_until - now
    if directives.min_fresh is not None and left < directives.min_fresh:
        return _VALIDATE
    if left > 0.0:
        return _FRESH
    if lifetime.must_revalidate:
        return _VALIDATE
    if directives.max_stale is not None and -left <= directives.max_stale:
        return Use.STALE_ALLOWED
    # A client that bounds the age wants nothing stale, unless it says so (RFC 9111, 5.2.1.1).
    if now < lifetime.swr_until and directives.max_age is None:
        return _STALE_WHILE_REVALIDATE
    return _VALIDATE


def is_error(status: int, verdict: Verdict) -> bool:
    """Whether an answer counts as an error that a stale response may stand in for.

    RFC 5861, 4 names the statuses; a verdict finds the same in an answer that says 200.
    """
    return status in ERRORS or verdict in {Verdict.TRANSIENT, Verdict.RATE_LIMITED, Verdict.QUOTA}


def may_serve_on_error(
    lifetime: Lifetime,
    directives: RequestDirectives,
    now: float,
    *,
    disconnected: bool = False,
) -> bool:
    """Whether the stored response may stand in for an error of the origin.

    `stale-if-error` of the response, of the policy or of the request allows it (RFC 5861, 4);
    `disconnected`, that no answer came at all, allows it for a while too (RFC 9111, 4.2.4).
    `no-cache`, `must-revalidate`, `proxy-revalidate` and `s-maxage` forbid it, and a client that sends
    `no-cache` or `no-store` has to allow it itself.
    """
    if lifetime.always_validate or now >= lifetime.kept_until:
        return False
    wanted = directives.stale_if_error
    if (directives.no_cache or directives.no_store) and wanted is None:
        return False
    if now < lifetime.fresh_until:
        return True
    if lifetime.must_revalidate:
        return False
    if now < lifetime.sie_until or (disconnected and now < lifetime.offline_until):
        return True
    return wanted is not None and now - lifetime.fresh_until <= wanted

"""When to refresh what is still fresh, and how long to trust what was refreshed."""

from __future__ import annotations

from sidecar.decisions.freshness import Lifetime


def refresh_due(lifetime: Lifetime, share: float, now: float) -> bool:
    """Whether `share` (0 to 1) of the freshness that the response came with has passed.

    `now` in Unix seconds. What is already stale is not ahead of anything.
    """
    if now >= lifetime.fresh_until or lifetime.always_validate:
        return False
    return now >= refresh_at(lifetime, share)


def refresh_at(lifetime: Lifetime, share: float) -> float:
    """Unix seconds when `share` (0 to 1) of the freshness that the response came with has passed."""
    return lifetime.born + (lifetime.fresh_until - lifetime.born) * share


def next_ttl(ttl: float, *, changed: bool, least: float, most: float) -> float:
    """Seconds to trust a response for, after its last `ttl` ended in a look at the origin.

    Twice as long when it had not changed, half as long when it had, within the bounds.
    """
    return min(max(ttl / 2 if changed else ttl * 2, least), most)

"""What a route's policy adds to RFC 9111, as the decisions read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sidecar.decisions.cache_control import TARGETS

DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class CacheRules:
    """Without a setting this is a shared cache by RFC 9111 alone. Times are seconds."""

    ttl: float | None = None
    """Freshness where the origin states none. An origin's own word always comes first."""
    negative_ttl: float | None = None
    """The same for the verdict `negative`; None does not store these."""
    stale_while_revalidate: float | None = None
    """Where the origin states none (RFC 5861, 3)."""
    stale_if_error: float | None = None
    """Where the origin states none (RFC 5861, 4); 0 forbids it when the origin cannot be reached, too."""
    max_age_total: float | None = None
    """From the moment the content came: nothing is kept longer, whatever else says."""
    respect_origin: bool = True
    """False overrules what the origin says on freshness and `no-store`; never `private`, `Authorization`."""
    methods: frozenset[str] = frozenset({"GET", "HEAD"})
    share_authorized: bool = False
    """Answers to requests with `Authorization` are shared, or the key tells the credentials apart."""
    share_private: bool = False
    """Answers that say `private`, or that set cookies without saying how long they are fresh, are shared."""
    offline: float = 3600.0
    """How long past its freshness a response may be served while the origin cannot be reached at all
    (RFC 9111, 4.2.4), where neither the origin nor the policy states `stale_if_error`."""
    keep: float = DAY
    """How long past its freshness a response with a validator is kept to be validated."""
    targets: tuple[bytes, ...] = TARGETS
    """The target list (RFC 9213, 2.2)."""
    distrust_age: bool = False
    """An `Age` that is no number, is repeated or comes on several lines makes a response stale.
    RFC 9111, 5.1 has a cache take the first and ignore what is invalid."""


PURE: Final = CacheRules()

"""`Cache-Status` (RFC 9211): what this cache did with a request, for whoever reads the answer."""

from __future__ import annotations

from enum import Enum
from typing import Final

from sidecar.decisions.structured_fields import string

NAME: Final = b"sidecar"
_HIT: Final = NAME + b"; hit; ttl=%d"


class Forward(Enum):
    """Why a request went on to the origin (RFC 9211, 2.2)."""

    BYPASS = "bypass"
    """The cache was told to leave it alone."""
    METHOD = "method"
    URI_MISS = "uri-miss"
    VARY_MISS = "vary-miss"
    MISS = "miss"
    """Nothing fits; which of the two above is not known."""
    REQUEST = "request"
    """There was a fresh response, but the request's directives forbid its use."""
    STALE = "stale"
    PARTIAL = "partial"


def hit(ttl: int) -> bytes:
    """The member for a stored response served without asking; `ttl` in seconds, negative when stale."""
    return _HIT % ttl


def member(
    forward: Forward | None = None,
    *,
    forward_status: int | None = None,
    ttl: int | None = None,
    stored: bool = False,
    collapsed: bool = False,
    key: bytes | None = None,
    detail: str | None = None,
) -> bytes:
    """Any member, its parameters in the order of RFC 9211, 2. Without `forward` it is a hit."""
    parts = [NAME, b"hit" if forward is None else b"fwd=" + forward.value.encode("ascii")]
    if forward_status is not None:
        parts.append(b"fwd-status=%d" % forward_status)
    if ttl is not None:
        parts.append(b"ttl=%d" % ttl)
    if stored:
        parts.append(b"stored")
    if collapsed:
        parts.append(b"collapsed")
    if key is not None:
        parts.append(b"key=" + string(key.decode("latin-1")))
    if detail is not None:
        parts.append(b"detail=" + string(detail))
    return b"; ".join(parts)


def appended(before: bytes | None, ours: bytes) -> bytes:
    """The field's value with our member last: the caches nearer to the origin stand before it (2)."""
    return before + b", " + ours if before else ours

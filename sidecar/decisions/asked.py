"""What a request asks of a cache, read in one pass over its headers.

Most requests ask nothing: they share one object, so that the way to a hit is one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sidecar.decisions.cache_control import NOTHING_ASKED, RequestDirectives, request_directives

if TYPE_CHECKING:
    from sidecar.headers import Line

_PRECONDITIONS: Final = (b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since")
LOOKED_AT: Final = frozenset(
    {b"cache-control", b"pragma", b"authorization", b"range", b"if-range", *_PRECONDITIONS}
)
"""Fields of a request that say something to a cache, in lower case."""


class Asked:
    """Of one request. Not changed once made: `PLAIN` is shared."""

    __slots__ = ("authorized", "directives", "preconditions", "ranged")

    def __init__(
        self,
        directives: RequestDirectives = NOTHING_ASKED,
        *,
        authorized: bool = False,
        preconditions: bool = False,
        ranged: bool = False,
    ) -> None:
        self.directives = directives
        self.authorized = authorized
        """It has `Authorization` (RFC 9111, 3.5)."""
        self.preconditions = preconditions
        """It is conditional: see `conditional.evaluate`."""
        self.ranged = ranged
        """It has `Range`: see `ranges.select`."""


PLAIN: Final = Asked()
"""Of a request that says nothing to a cache. Compared by identity."""


def asked_of(headers: Sequence[Line]) -> Asked:
    """What the headers of a request ask; `PLAIN` itself when that is nothing."""
    for line in headers:
        if line.name in LOOKED_AT:
            return _read(headers)
    return PLAIN


def _read(headers: Sequence[Line]) -> Asked:
    cache_control: list[bytes] = []
    pragma: list[bytes] = []
    names: set[bytes] = set()
    for line in headers:
        name = line.name
        if name == b"cache-control":
            cache_control.append(line.value)
        elif name == b"pragma":
            pragma.append(line.value)
        elif name in LOOKED_AT:
            names.add(name)
    directives = request_directives(cache_control, pragma) if cache_control or pragma else NOTHING_ASKED
    return Asked(
        NOTHING_ASKED if directives == NOTHING_ASKED else directives,
        authorized=b"authorization" in names,
        preconditions=not names.isdisjoint(_PRECONDITIONS),
        ranged=b"range" in names,
    )

"""Which variant of a response a request is after (RFC 9111, 4.1).

Two requests are after the same variant when the fields that `Vary` names have the same values once
lines are joined, white space around commas is gone, and, for the negotiation fields of RFC 9110, 12.5,
case, order and the ways to write a weight make no difference. A field that is missing matches only
where it is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.headers import Line

ANY: Final = (b"*",)
"""Of a response that no other request can be given."""
_NEGOTIATED: Final = frozenset({b"accept", b"accept-charset", b"accept-encoding", b"accept-language"})
_MEMBER: Final = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_WEIGHT: Final = re.compile(rb"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\Z")


def vary_names(headers: Iterable[Line]) -> tuple[bytes, ...]:
    """The fields that `Vary` names, in lower case, sorted, each once; `ANY` when one is `*`."""
    names: set[bytes] = set()
    for line in headers:
        if line.name == b"vary":
            names.update(name.strip(b" \t").lower() for name in line.value.split(b","))
    names.discard(b"")
    return ANY if b"*" in names else tuple(sorted(names))


class VariantKeys:
    """Makes the keys of variants. What it remembers changes no key, only how soon it is there."""

    __slots__ = ("_known",)
    MOST = 4096
    """Sets of values whose digest is remembered; all are forgotten when there are more."""
    LONGEST = 512
    """Bytes of values in a set that is remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[bytes, ...], tuple[bytes | None, ...]], bytes] = {}

    def key(self, primary: bytes, names: tuple[bytes, ...], request: Iterable[Line]) -> bytes:
        """The key of the variant that `request` is after, among those of `primary` that vary by `names`.

        `names` as `vary_names` gives them; without any it is `primary`. Printable; values are digested.
        """
        if not names:
            return primary
        found: list[bytes | None] = [None] * len(names)
        for line in request:
            name = line.name
            if name in names:
                place = names.index(name)
                before = found[place]
                found[place] = line.value if before is None else before + b"," + line.value
        values = tuple(found)
        known = self._known.get((names, values))
        if known is None:
            known = variant_digest(names, values)
            if sum(len(value) for value in values if value) <= self.LONGEST:
                if len(self._known) >= self.MOST:
                    self._known.clear()
                self._known[names, values] = known
        return b"%b:%b" % (primary, known)


def variant_digest(names: Sequence[bytes], values: Sequence[bytes | None]) -> bytes:
    """Tells variants apart: `values` are those of `names` in a request, None where it has none."""
    digest = blake2b(digest_size=12)
    for name, value in zip(names, values, strict=True):
        # Neither a name nor a value can hold a line feed or a NUL (RFC 9110, 5.5).
        digest.update(name + (b"\0\n" if value is None else b"\n" + normalised(name, value) + b"\n"))
    return digest.hexdigest().encode("ascii")


def normalised(name: bytes, value: bytes) -> bytes:
    """The value of one request field, its lines joined by commas, in the form for all that mean the same."""
    members = [member.strip(b" \t") for member in _MEMBER.findall(value)]
    if name in _NEGOTIATED:
        weighed = [_weighed(member) for member in members if member]
        if all(weighed):
            return b",".join(sorted(filter(None, weighed)))
    return b",".join(members)


def _weighed(member: bytes) -> bytes | None:
    """A member in lower case without needless space, its weight in thousandths; None when malformed."""
    if b'"' in member:
        return None
    parts = [part.strip(b" \t").lower() for part in member.split(b";")]
    weight = 1000
    kept: list[bytes] = []
    for part in parts:
        if part.startswith(b"q="):
            if _WEIGHT.match(part[2:]) is None:
                return None
            weight = round(float(part[2:]) * 1000)
        else:
            kept.append(part)
    return b"%b;q=%d" % (b";".join(kept), weight)

"""One spelling for the URLs that a route takes for the same.

Without rules only what RFC 3986, 6.2.2 makes equal is: the case of the host and of escapes, escapes
of unreserved characters, the scheme's own port. Path segments stay as they are: what `..` means is
the origin's business. A route's rules say which query parameters do not matter, and how.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_NOT_PRINTABLE: Final = re.compile(rb"[^\x21-\x7e]")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NUMBER: Final = re.compile(rb"(-?\d{1,18})(?:\.\d*)?\Z")
_PORTS: Final = {"http": b":80", "https": b":443"}


@dataclass(frozen=True, slots=True)
class QueryRules:
    """What a route's `key: {query: …}` says. Names are as a form would decode them."""

    drop: frozenset[str] = frozenset()
    """Parameters that do not tell requests apart, credentials above all; `utm_*` stands for all of them."""
    fold: frozenset[str] = frozenset()
    """Parameters whose case and white space do not matter."""
    bucket: dict[str, float] = field(default_factory=dict)
    """Numeric parameters and the period (at least 1) that they are rounded down to; `now` is the clock."""
    sort: bool = False
    """The order of parameters does not matter; that of equal names does."""

    @property
    def any(self) -> bool:
        return bool(self.drop or self.fold or self.bucket or self.sort)


def canonical_host(scheme: str, host: bytes) -> bytes:
    """In lower case, without the port that the scheme has anyway (RFC 3986, 6.2.2.1 and 6.2.3)."""
    host = host.lower()
    return host.removesuffix(_PORTS.get(scheme, b""))


def canonical_escapes(text: bytes) -> bytes:
    """Escapes in upper case, and none of an unreserved character (RFC 3986, 6.2.2); printable ASCII."""
    if b"%" in text:
        text = _ESCAPE.sub(_escape, text)
    return _NOT_PRINTABLE.sub(lambda found: b"%%%02X" % found[0][0], text)


def _escape(found: re.Match[bytes]) -> bytes:
    code = int(found[1], 16)
    return bytes((code,)) if code in _UNRESERVED else b"%" + found[1].upper()


class QueryCanon:
    """The rules for query parameters of one route, compiled."""

    __slots__ = ("_bucket", "_drop", "_fold", "_prefixes", "_sort", "timed")

    def __init__(self, rules: QueryRules) -> None:
        self._drop = frozenset(name.encode() for name in rules.drop if not name.endswith("*"))
        self._prefixes = tuple(name[:-1].encode() for name in rules.drop if name.endswith("*"))
        self._fold = frozenset(name.encode() for name in rules.fold)
        self._bucket = {name.encode(): max(1, int(period)) for name, period in rules.bucket.items()}
        self._sort = rules.sort
        self.timed = bool(self._bucket)
        """The result may depend on the clock."""

    def __call__(self, query: bytes, now: float) -> bytes:
        """The query in the spelling that stands for all that the route takes for the same.

        `now`: Unix seconds. Names are recognised however they are escaped.
        """
        kept: list[tuple[bytes, bytes]] = []
        for part in query.split(b"&"):
            if not part:
                continue
            raw, equals, value = part.partition(b"=")
            name = unquote_to_bytes(raw.replace(b"+", b" "))
            if name in self._drop or (self._prefixes and name.startswith(self._prefixes)):
                continue
            if name in self._bucket:
                value = self._floor(name, value, now)
            elif name in self._fold:
                value = fold(value)
            kept.append((name, canonical_escapes(raw) + equals + canonical_escapes(value)))
        if self._sort:
            kept.sort(key=lambda pair: pair[0])
        return b"&".join(part for _, part in kept)

    def _floor(self, name: bytes, value: bytes, now: float) -> bytes:
        text = unquote_to_bytes(value).strip().lower()
        number = b"%d" % int(now) if text == b"now" else text
        found = _NUMBER.match(number)
        if found is None:
            return value
        period = self._bucket[name]
        return b"%d" % (int(found[1]) // period * period)


def fold(value: bytes) -> bytes:
    """A form value without case, without white space at the ends, with single spaces within.

    Characters count as what they are, however they are composed (Unicode NFC) and escaped.
    """
    raw = unquote_to_bytes(value.replace(b"+", b" "))
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return quote_from_bytes(b" ".join(raw.lower().split())).encode("ascii")
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return quote_from_bytes(" ".join(folded.split()).encode()).encode("ascii")

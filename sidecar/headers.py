"""Header lines: which ones a proxy forwards, and what they look like on the wire.

Facts (RFC 9110, 7.6.1): a proxy removes `Connection`, every field it names, and the fields that are
known to be hop-by-hop. `Content-Length` and `Transfer-Encoding` describe the framing of one hop: the
sender of each hop writes its own (RFC 9112, 6). Field names are case-insensitive; the spelling that
came in is kept going out.

Both planes hold headers as lists of `Line`. A line that was seen before costs one dictionary
look-up: most lines of most messages repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final


class Kind(Enum):
    """What a proxy does with a line. Compared by identity."""

    PLAIN = "plain"
    """Forwarded as it is."""
    HOP = "hop"
    """Belongs to this connection: dropped."""
    FRAMING = "framing"
    """Written anew by whoever sends the message on."""
    CONNECTION = "connection"
    """Dropped, and so is what it names."""
    UPGRADE = "upgrade"
    """Dropped, unless the protocol really changes."""
    OURS = "ours"
    """Set by the sidecar: what came in is judged, then replaced."""
    EXPECT = "expect"
    """Answered here (RFC 9110, 10.1.1)."""
    HOST = "host"


REQUEST_KINDS: Mapping[bytes, Kind] = {
    b"connection": Kind.CONNECTION,
    b"keep-alive": Kind.HOP,
    b"proxy-connection": Kind.HOP,
    b"proxy-authorization": Kind.HOP,
    b"te": Kind.HOP,
    b"trailer": Kind.HOP,
    b"http2-settings": Kind.HOP,
    b"upgrade": Kind.UPGRADE,
    b"transfer-encoding": Kind.FRAMING,
    b"content-length": Kind.FRAMING,
    b"expect": Kind.EXPECT,
    b"host": Kind.HOST,
    b"x-forwarded-for": Kind.OURS,
    b"x-forwarded-proto": Kind.OURS,
    b"x-forwarded-host": Kind.OURS,
    b"forwarded": Kind.OURS,
    b"x-request-id": Kind.OURS,
    b"traceparent": Kind.OURS,
    b"x-sidecar-debug": Kind.OURS,
}

EGRESS_REQUEST_KINDS: Mapping[bytes, Kind] = {
    name: kind
    for name, kind in REQUEST_KINDS.items()
    if name not in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded")
}
"""Of the app's own calls: what it says of itself is the provider's affair, and passes as it is."""

RESPONSE_KINDS: Mapping[bytes, Kind] = {
    b"connection": Kind.CONNECTION,
    b"keep-alive": Kind.HOP,
    b"proxy-connection": Kind.HOP,
    b"proxy-authenticate": Kind.HOP,
    b"trailer": Kind.HOP,
    b"upgrade": Kind.UPGRADE,
    b"transfer-encoding": Kind.FRAMING,
    b"content-length": Kind.FRAMING,
    b"x-request-id": Kind.OURS,
}


_NONE: Final[frozenset[bytes]] = frozenset()
_OPTIONS: Final = frozenset({b"close", b"keep-alive", b"upgrade"})
"""Members of `Connection` that say something of the connection itself."""
KEPT_ANYWAY: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})
"""Fields that `Connection` cannot have removed: the message would mean something else without them."""


# Globals are found faster than members of an Enum.
_PLAIN: Final = Kind.PLAIN
_CONNECTION: Final = Kind.CONNECTION


class Line:
    """What is known of one header line. Not changed once made: it is shared."""

    __slots__ = ("kind", "name", "nominates", "tokens", "value", "wire")

    def __init__(self, name: bytes, value: bytes, kinds: Mapping[bytes, Kind] = RESPONSE_KINDS) -> None:
        self.name = name.lower()
        # llhttp strips the white space before a value, not the one after it (RFC 9110, 5.5).
        self.value = value.rstrip(b" \t")
        self.wire = b"%b: %b\r\n" % (name, self.value)
        self.kind = kinds.get(self.name, _PLAIN)
        self.tokens: frozenset[bytes] = _NONE
        """Of a `Connection` line: its members, in lower case."""
        self.nominates: frozenset[bytes] = _NONE
        """Of a `Connection` line: the fields that it declares to be of this hop only."""
        if self.kind is _CONNECTION:
            self.tokens = frozenset(tokens(self.value))
            self.nominates = self.tokens - _OPTIONS - KEPT_ANYWAY

    def __repr__(self) -> str:
        return f"Line({self.wire!r})"


class Lines(dict[tuple[bytes, bytes], Line]):
    """Memo from name and value, as they came, to their `Line`: bounded, forgotten whole when full.

    Values that differ on each request (ids, dates) would fill any smarter structure too, and
    refilling takes a handful of requests.
    """

    __slots__ = ("_kinds",)
    MOST = 4096
    LONGEST = 512
    """Bytes of a line above which it is not kept."""

    def __init__(self, kinds: Mapping[bytes, Kind]) -> None:
        super().__init__()
        self._kinds = kinds

    def __missing__(self, pair: tuple[bytes, bytes]) -> Line:
        line = Line(*pair, self._kinds)
        if len(line.wire) <= self.LONGEST:
            if len(self) >= self.MOST:
                self.clear()
            self[pair] = line
        return line


def tokens(value: bytes) -> list[bytes]:
    """The lower-cased members of a comma-separated list (RFC 9110, 5.6.1)."""
    return [token for token in (part.strip(b" \t").lower() for part in value.split(b",")) if token]


def first(headers: Iterable[Line], name: bytes) -> bytes | None:
    """The value of the first field called `name` (given in lower case)."""
    for line in headers:
        if line.name == name:
            return line.value
    return None


def every(headers: Iterable[Line], name: bytes) -> list[bytes]:
    """The values of all fields called `name` (given in lower case), in order."""
    return [line.value for line in headers if line.name == name]

"""Heads that are plainly valid, read line by line with a memory; all others are left to llhttp.

Most heads are made of lines that were seen before, and most clients send the same block of lines each
time. Reading such a head takes one or two dictionary look-ups, where llhttp calls back for each line.
What is remembered was checked against the grammar of RFC 9112 first, more narrowly than llhttp does:
a line that fits no rule below makes the answer None, and llhttp has the last word on that head.

All memories are bounded by count and size, and forgotten whole when full.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeVar

from sidecar.headers import Kind, Line, first

_K = TypeVar("_K")
_V = TypeVar("_V")

MOST: Final = 1024
"""Lines, blocks and start lines remembered, each."""
LONGEST: Final = 2048
"""Bytes of what is remembered; longer heads are read by llhttp."""

_FIELD: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)[ \t]*"
)
"""field-line (RFC 9112, 5; RFC 9110, 5.5): no white space before the colon, no control characters."""
_REQUEST: Final = re.compile(rb"([A-Z]+) (/[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*) HTTP/1\.1")
"""request-line in origin form (RFC 9112, 3), of the characters a path and a query have (RFC 3986)."""
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")
CONTROLS: Final = bytes(byte for byte in range(128) if (byte < 0x20 and byte != 0x09) or byte == 0x7F)
"""What no field value holds."""
_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

# Globals are found faster than members of an Enum.
_PLAIN: Final = Kind.PLAIN
_OURS: Final = Kind.OURS


class Block:
    """The header lines of a head."""

    __slots__ = ("correlation", "headers", "host", "keep_alive", "length", "ours", "passed_on", "plain")

    def __init__(
        self, headers: tuple[Line, ...], host: bytes | None, length: int | None, *, keep_alive: bool
    ) -> None:
        self.headers = headers
        self.ours: tuple[Line, ...] = ()
        """Those that the sidecar judges and replaces."""
        self.host = host
        self.length = length
        """Content-Length; None where there is none."""
        self.keep_alive = keep_alive
        self.plain = b"".join([line.wire for line in headers if line.kind is _PLAIN])
        """The lines that are forwarded as they are."""
        self.passed_on = self.plain if host is None else b"Host: %b\r\n%b" % (host, self.plain)
        """The same after `Host`."""
        self.correlation = first(headers, b"x-correlation-id") or b""

    def beside(self, ours: tuple[Line, ...]) -> Block:
        """These lines and those that the sidecar replaces, which stand last: names keep their own order."""
        block = Block.__new__(Block)
        block.headers = self.headers + ours
        block.ours = ours
        block.host = self.host
        block.length = self.length
        block.keep_alive = self.keep_alive
        block.plain = self.plain
        block.passed_on = self.passed_on
        block.correlation = self.correlation
        return block


_UNKNOWN: Final = Block((), None, None, keep_alive=False)
"""Told apart by identity from None, which is remembered too."""


class StartLine:
    """A request line: what a `Request` needs of it."""

    __slots__ = ("line", "method", "path", "query", "target")

    def __init__(self, method: str, target: bytes) -> None:
        self.method = method
        self.target = target
        path, _, query = target.partition(b"?")
        self.path = path.decode("latin-1")
        self.query = query
        self.line = b"%b %b HTTP/1.1\r\n" % (method.encode(), target)


class _Blocks:
    """What both directions share: the memory of lines and of blocks of lines."""

    __slots__ = ("_blocks", "_kinds", "_lines", "_ours", "_without_ours")

    def __init__(self, kinds: Mapping[bytes, Kind]) -> None:
        self._kinds = kinds
        self._lines: dict[bytes, Line] = {}
        self._blocks: dict[bytes, Block | None] = {}
        self._without_ours: dict[tuple[Line, ...], Block | None] = {}
        """What is left of blocks whose lines that the sidecar replaces differ each time."""
        self._ours: dict[bytes, None] = {}
        """The names of those lines, as they are spelled."""

    def block(self, raw: bytes) -> Block | None:
        """The block of header lines `raw` (each without its end, joined by CRLF); None: llhttp's affair."""
        block = self._blocks.get(raw, _UNKNOWN)
        if block is not _UNKNOWN:
            return block
        block = self._read(raw)
        # Ids differ on each request: such blocks would only push out the others.
        if len(raw) <= LONGEST and (block is None or not block.ours):
            _remember(self._blocks, raw, block)
        return block

    def _line(self, raw: bytes) -> Line | None:
        name, _, value = raw.partition(b":")
        if name in self._ours and value.translate(None, CONTROLS) == value:
            return Line(name, value.lstrip(b" \t"), self._kinds)
        match = _FIELD.fullmatch(raw)
        if match is None:
            return None
        line = Line(match[1], match[2], self._kinds)
        if len(raw) <= LONGEST:
            # What the sidecar replaces, ids above all, mostly differs each time.
            if line.kind is not _OURS:
                _remember(self._lines, raw, line)
            else:
                _remember(self._ours, match[1], None)
        return line

    def _read(self, raw: bytes) -> Block | None:
        headers: list[Line] = []
        ours: list[Line] = []
        known = self._lines.get
        for raw_line in raw.split(b"\r\n"):
            line = known(raw_line)
            if line is None:
                line = self._line(raw_line)
                if line is None:
                    return None
                if line.kind is _OURS:
                    ours.append(line)
                    continue
            headers.append(line)
        rest = tuple(headers)
        if not ours:
            return self._judge(rest)
        block = self._without_ours.get(rest, _UNKNOWN)
        if block is _UNKNOWN:
            block = self._judge(rest)
            if len(raw) <= LONGEST:
                _remember(self._without_ours, rest, block)
        return block.beside(tuple(ours)) if block is not None else None

    def _judge(self, headers: tuple[Line, ...]) -> Block | None:
        host: bytes | None = None
        length: int | None = None
        keep_alive = True
        for line in headers:
            kind = line.kind
            if kind is _PLAIN:
                continue
            if kind is Kind.HOST:
                if host is not None or not _AUTHORITY.fullmatch(line.value):
                    return None
                host = line.value
            elif kind is Kind.FRAMING:
                if line.name != b"content-length" or length is not None or not _DIGITS.fullmatch(line.value):
                    return None
                length = int(line.value)
            elif kind is Kind.CONNECTION:
                if line.nominates or b"upgrade" in line.tokens:
                    return None
                keep_alive = keep_alive and b"close" not in line.tokens
            elif kind is not Kind.HOP:
                return None
        return Block(headers, host, length, keep_alive=keep_alive)


class RequestHeads(_Blocks):
    """Reads request heads; one for all connections of a listener."""

    __slots__ = ("_starts",)

    def __init__(self, kinds: Mapping[bytes, Kind]) -> None:
        super().__init__(kinds)
        self._starts: dict[bytes, StartLine | None] = {}

    def start(self, raw: bytes) -> StartLine | None:
        """The request line `raw`; None: llhttp's affair."""
        try:
            return self._starts[raw]
        except KeyError:
            pass
        match = _REQUEST.fullmatch(raw)
        start = None
        if match is not None:
            method = match[1].decode("ascii")
            if method in METHODS:
                start = StartLine(method, match[2])
        if len(raw) <= LONGEST:
            _remember(self._starts, raw, start)
        return start


class ResponseHeads(_Blocks):
    """Reads response heads; one for all connections to an upstream."""

    __slots__ = ("_heads",)

    def __init__(self, kinds: Mapping[bytes, Kind]) -> None:
        super().__init__(kinds)
        self._heads: dict[bytes, tuple[int, bytes, Block] | None] = {}

    def head(self, raw: bytes) -> tuple[int, bytes, Block] | None:
        """Status, reason and header lines of the head `raw`, without its end; None: llhttp's affair."""
        try:
            return self._heads[raw]
        except KeyError:
            pass
        line, _, rest = raw.partition(b"\r\n")
        match = _STATUS.fullmatch(line)
        block = self._read(rest) if match is not None else None
        head = (int(match[1]), match[2], block) if match is not None and block is not None else None
        if len(raw) <= LONGEST and (block is None or not block.ours):
            _remember(self._heads, raw, head)
        return head


def _remember(memory: dict[_K, _V], key: _K, value: _V) -> None:
    if len(memory) >= MOST:
        memory.clear()
    memory[key] = value

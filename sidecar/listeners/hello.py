"""The ClientHello: which host a TLS client asks for, read before anything is decided about its bytes.

Read by hand, as a connection may have to go on untouched to the host it names: a TLS library would
answer, or refuse a version or cipher that is none of our business. Facts: records are RFC 8446, 5.1 (a
handshake message may be spread over several), the message is 4.1.2, `server_name` is RFC 6066, 3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

LONGEST: Final = 64 * 1024
"""Bytes of a ClientHello that are waited for. With post-quantum key shares they take about 2 KiB."""
UNRECOGNIZED_NAME: Final = 112
"""Alert descriptions (RFC 8446, 6.2)."""
ACCESS_DENIED: Final = 49
PLAIN_HTTP: Final = "a plain HTTP request"
INTERNAL_ERROR: Final = 80

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_LARGEST_RECORD: Final = 1 << 14
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_NAME: Final = re.compile(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


class NotTls(Exception):
    """The bytes are no ClientHello; the message says what they are instead."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a ClientHello says."""

    name: str | None
    """The host asked for, in lower case and without a dot at its end; None where none is named."""


def read_hello(data: bytes) -> Hello | None:
    """What the connection's first bytes say; None while there are too few. Raises `NotTls`."""
    message = b""
    at = 0
    while True:
        head = data[at : at + 5]
        if head[:1] not in (b"", b"\x16"):
            raise NotTls(_described(data) if at == 0 else "a record of another type within the ClientHello")
        if head[1:2] not in (b"", b"\x03"):
            raise NotTls(_described(data) if at == 0 else "a record of an unknown version")
        if len(head) < 5:
            _check_size(data)
            return None
        size = int.from_bytes(head[3:])
        if not 0 < size <= _LARGEST_RECORD:
            raise NotTls("a record of an impossible size")
        message += data[at + 5 : at + 5 + size]
        if message[:1] not in (b"", b"\x01"):
            raise NotTls("a handshake that begins with something else than a ClientHello")
        if len(message) >= 4:
            end = 4 + int.from_bytes(message[1:4])
            if end > LONGEST:
                raise NotTls(f"a ClientHello of more than {LONGEST} bytes")
            if len(message) >= end:
                return Hello(_server_name(message[4:end]))
        at += 5 + size
        if at > len(data):
            _check_size(data)
            return None


def alert(description: int) -> bytes:
    """A fatal alert, as it is sent before any keys are agreed on (RFC 8446, 6)."""
    return b"\x15\x03\x03\x00\x02\x02%c" % description


def _check_size(data: bytes) -> None:
    if len(data) > LONGEST:
        raise NotTls(f"a ClientHello of more than {LONGEST} bytes")


def _described(data: bytes) -> str:
    if re.match(rb"[A-Z]{3,10} ", data[:11]):
        return PLAIN_HTTP
    return f"bytes that are no TLS (they begin with {data[:4].hex(' ')})"


class _Reader:
    """Takes fields from the front of a message. Raises `NotTls` where it ends too early."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise NotTls("a ClientHello whose fields go past its end")
        return self.data[start : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """A field whose length comes first, in `size` bytes."""
        return self.take(self.number(size))

    @property
    def more(self) -> bool:
        return self.at < len(self.data)


def _server_name(message: bytes) -> str | None:
    hello = _Reader(message)
    hello.take(2 + 32)  # version and random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    if not hello.more:  # extensions may be absent before TLS 1.3
        return None
    extensions = _Reader(hello.vector(2))
    while extensions.more:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind != _SERVER_NAME:
            continue
        names = _Reader(_Reader(content).vector(2))
        while names.more:
            kind, name = names.number(1), names.vector(2)
            if kind == _HOST_NAME:
                if not _NAME.fullmatch(name) or len(name) > 255:
                    raise NotTls("a ClientHello that names no valid host")
                return name.decode("ascii").lower().removesuffix(".")
    return None

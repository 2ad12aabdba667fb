"""The wire of Redis and Valkey: RESP2, whole commands out, replies in.

It is written out here because a look-up costs 3 to 11 µs of CPU this way and 48 to 112 µs through redis-py's
asyncio client (2 kB values, 1 to 64 at a time): it awaits a pooled connection per command, and cannot
pipeline commands of different requests.

Specification: redis.io/docs/latest/develop/reference/protocol-spec.
"""

from __future__ import annotations

from typing import Final

LARGEST: Final = 512 * 1024 * 1024
"""Bytes of a bulk string: the protocol's own limit."""
DEEPEST: Final = 8
"""Arrays in arrays: no command of ours answers with more than 4."""
LONGEST_LINE: Final = 64 * 1024


class WireError(ValueError):
    """What came is not RESP2."""


class ReplyError:
    """An error that the server answered with. `kind` is its first word, such as `OOM` or `MOVED`."""

    __slots__ = ("kind", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.kind = text.partition(" ")[0]

    def __repr__(self) -> str:
        return f"ReplyError({self.text!r})"


Reply = bytes | int | list["Reply"] | ReplyError | None


def command(parts: tuple[bytes, ...]) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class Parser:
    """Cuts a byte stream into replies. A bulk string that comes in many pieces is joined once."""

    __slots__ = ("_held", "_missing")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._missing = 0
        """Bytes that must come before another look is worth it."""

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are now complete. Raises WireError; the stream is lost then."""
        if self._held:
            self._held.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = b"".join(self._held)
            self._held.clear()
        replies: list[Reply] = []
        at = 0
        end = len(data)
        while at < end:
            step = self._one(data, at, 0)
            if step is None:
                self._held.append(data[at:] if at else data)
                break
            reply, at = step
            replies.append(reply)
        return replies

    def _one(self, data: bytes, at: int, depth: int) -> tuple[Reply, int] | None:
        """One reply and where it ends; None when it is not all here."""
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            if len(data) - at > LONGEST_LINE:
                raise WireError("a line without an end")
            self._missing = 1
            return None
        kind = data[at]
        rest = data[at + 1 : line_end]
        at = line_end + 2
        match kind:
            case 0x24:  # $
                return self._bulk(data, at, _number(rest))
            case 0x3A:  # :
                return _number(rest), at
            case 0x2B:  # +
                return rest, at
            case 0x2D:  # -
                return ReplyError(rest.decode("utf-8", "replace")), at
            case 0x2A:  # *
                return self._array(data, at, _number(rest), depth)
        raise WireError("an unknown type of reply")

    def _bulk(self, data: bytes, at: int, size: int) -> tuple[Reply, int] | None:
        if size == -1:
            return None, at
        if not 0 <= size <= LARGEST:
            raise WireError("a bulk string of an impossible size")
        end = at + size
        if len(data) < end + 2:
            self._missing = end + 2 - len(data)
            return None
        if data[end : end + 2] != b"\r\n":
            raise WireError("a bulk string that ends elsewhere")
        return data[at:end], end + 2

    def _array(self, data: bytes, at: int, count: int, depth: int) -> tuple[Reply, int] | None:
        if count == -1:
            return None, at
        if count < 0 or depth >= DEEPEST:
            raise WireError("an impossible array")
        items: list[Reply] = []
        for _ in range(count):
            if at >= len(data):
                self._missing = 1
                return None
            step = self._one(data, at, depth + 1)
            if step is None:
                return None
            item, at = step
            items.append(item)
        return items, at


def _number(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise WireError("a number is malformed") from None

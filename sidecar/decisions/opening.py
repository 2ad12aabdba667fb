"""The beginning of a response body, as far as a verdict needs to see it.

A JSON body is looked at whole, up to `MOST` bytes; of an event stream the first event is. Content
codings (RFC 9110, 8.4.1) are undone for the look alone: `gzip` and `deflate`, and no more than `MOST`
bytes of what comes out, so that a small body that unpacks to gigabytes costs no more than a plain one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import orjson

from sidecar.decisions.skim import UNCLEAR

if TYPE_CHECKING:
    from sidecar.headers import Line

MOST: Final = 64 * 1024
"""Bytes that are looked at, as sent and as decoded."""
SMALL: Final = 4 * 1024
"""Bytes that are parsed sooner than thought about."""
NOTHING: Final = object()
"""There is no JSON value to be found."""

TOO_LARGE: Final = "too-large"
UNKNOWN_ENCODING: Final = "unknown-encoding"
UNDECODABLE: Final = "undecodable"
NOT_JSON: Final = "not-json"

_EVENTS: Final = b"text/event-stream"
_SNIFFED: Final = frozenset(
    {b"", b"text/plain", b"text/javascript", b"application/javascript", b"application/octet-stream"}
)
"""Media types under which servers send JSON without saying so: the first byte tells."""
_BEGINS: Final = frozenset(b"{[")
_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = b" \t\r\n" + _BOM
_BEFORE: Final = b"\r\n" + _BOM
"""Before the first event: no event."""

_GZIP: Final = 31
_ZLIB: Final = 15
_RAW: Final = -15
"""Window bits of zlib.decompressobj. `deflate` is the zlib format (RFC 9110, 8.4.1.2); some send it raw."""
_CODINGS: Final = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}
_GZIP_MAGIC: Final = b"\x1f\x8b"

# Atomic: the CR of a CRLF is no line end of its own.
_BLANK_LINE: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_LONGEST_BLANK: Final = 4


class _Inflater:
    """Undoes `gzip` or `deflate` piece by piece."""

    __slots__ = ("_begun", "_bits", "_stream")

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._stream = zlib.decompressobj(bits)
        self._begun = False

    @property
    def complete(self) -> bool:
        return self._stream.eof

    def feed(self, data: bytes, most: int) -> bytes:
        """What comes out, `most` bytes at most: what is over is lost. Raises zlib.error."""
        out = b""
        while data and len(out) < most:
            try:
                out += self._stream.decompress(data, most - len(out))
            except zlib.error:
                if self._begun or self._bits != _ZLIB:
                    raise
                self._bits = _RAW
                self._stream = zlib.decompressobj(_RAW)
                self._begun = True
                continue
            self._begun = True
            data = self._stream.unused_data
            if not data.startswith(_GZIP_MAGIC):
                break
            self._stream = zlib.decompressobj(_GZIP)  # RFC 1952, 2.2: members may follow one another
        return out


class Opening:
    """A look at one body. It is fed until it has seen enough, or else finished with the whole."""

    __slots__ = ("trouble", "value")

    def __init__(self) -> None:
        self.value: Any = NOTHING
        """The JSON value found."""
        self.trouble = ""
        """Why there is none, as a word for the trail; nothing where none was to be expected."""

    def feed(self, chunk: bytes) -> bool:
        """The next piece of the body. True: no more need be seen."""
        raise NotImplementedError

    def finish(self, whole: bytes) -> None:
        """The body has ended; `whole` is all that was fed."""
        raise NotImplementedError

    def _parse(self, text: bytes | bytearray, *, expected: bool = True) -> None:
        try:
            self.value = orjson.loads(text)
        except orjson.JSONDecodeError:
            if expected:
                self.trouble = NOT_JSON


class JsonBody(Opening):
    """A body that is one JSON value."""

    __slots__ = ("_bits", "_declared", "_pick", "_size", "_sniffing", "_worth")

    def __init__(
        self,
        *,
        declared: bool,
        bits: int | None,
        worth: Callable[[bytes], bool],
        pick: Callable[[bytes], Any],
    ) -> None:
        """`declared`: its media type says JSON. `bits`: of its content coding. The rest: see `opening`."""
        super().__init__()
        self._worth = worth
        self._pick = pick
        self._declared = declared
        self._bits = bits
        self._size = 0
        self._sniffing = not declared and bits is None

    def feed(self, chunk: bytes) -> bool:
        self._size += len(chunk)
        if self._size > MOST:
            self.trouble = TOO_LARGE
            return True
        if self._sniffing and (begun := chunk.lstrip(_SPACE)):
            self._sniffing = False
            return begun[0] not in _BEGINS
        return False

    def finish(self, whole: bytes) -> None:
        if self._bits is not None and whole:
            inflater = _Inflater(self._bits)
            try:
                whole = inflater.feed(whole, MOST + 1)
            except zlib.error:
                self.trouble = UNDECODABLE
                return
            if len(whole) > MOST:
                self.trouble = TOO_LARGE
                return
            if not inflater.complete:
                self.trouble = UNDECODABLE
                return
        if not whole or (len(whole) >= SMALL and not self._worth(whole)):
            return
        text = whole.removeprefix(_BOM)
        self.value = UNCLEAR if len(text) < SMALL else self._pick(text)
        if self.value is UNCLEAR:
            self.value = NOTHING
            self._parse(text, expected=self._declared)


class FirstEvent(Opening):
    """A stream of server-sent events (WHATWG HTML, 9.2.6), whose first is one JSON value.

    Nothing is waited for past the first blank line, even where what stands before it is a comment:
    a stream that says early that it is alive is let go.
    """

    __slots__ = ("_decoded", "_inflater", "_received", "_searched", "_text")

    def __init__(self, *, bits: int | None) -> None:
        super().__init__()
        self._inflater = None if bits is None else _Inflater(bits)
        self._text = bytearray()
        self._searched = 0
        self._received = self._decoded = 0

    def feed(self, chunk: bytes) -> bool:
        self._received += len(chunk)
        if self._inflater is not None:
            try:
                chunk = self._inflater.feed(chunk, MOST + 1 - self._decoded)
            except zlib.error:
                self.trouble = UNDECODABLE
                return True
        self._decoded += len(chunk)
        self._text += chunk
        if not self._searched:
            self._text = self._text.lstrip(_BEFORE)
        text = self._text
        end = _BLANK_LINE.search(text, max(0, self._searched - _LONGEST_BLANK))
        if end is not None and end.start() <= MOST:
            self._read(text[: end.start()])
            return True
        self._searched = len(text)
        if self._received > MOST or self._decoded > MOST:
            self.trouble = TOO_LARGE
            return True
        return False

    def finish(self, whole: bytes) -> None:
        # By the book an event without its blank line is dropped; as an error's it is all there is.
        self._read(self._text)

    def _read(self, event: bytearray) -> None:
        data = []
        for line in _LINE_END.split(event):
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
        if data:
            self._parse(data[0] if len(data) == 1 else b"\n".join(data), expected=False)


def opening(
    headers: Iterable[Line],
    length: int | None,
    worth: Callable[[bytes], bool] = bool,
    pick: Callable[[bytes], Any] = lambda _: UNCLEAR,
) -> Opening | str:
    """The look at a body with these header fields and of so many bytes, None where that is not known.

    `worth` tells of a whole text whether it matters what is in it, where that costs less than parsing; and
    `pick` picks out what matters, or says that it is `UNCLEAR`.
    Where there is none, the reason as a word for the trail; nothing for what is no JSON anyway.
    """
    media = coding = b""
    for line in headers:
        name = line.name
        if name == b"content-type":
            media = line.value.partition(b";")[0].rstrip().lower()
        elif name == b"content-encoding":
            coding = coding + b"," + line.value if coding else line.value
    events = media == _EVENTS
    declared = media.endswith((b"/json", b"+json"))
    if not (declared or events or media in _SNIFFED):
        return ""
    bits = None
    if coding and (coding := coding.lower()) != b"identity":
        bits = _CODINGS.get(coding)
        if bits is None:
            return UNKNOWN_ENCODING
    if events:
        return FirstEvent(bits=bits)
    if length is not None and length > MOST:
        return TOO_LARGE
    return JsonBody(declared=declared, bits=bits, worth=worth, pick=pick)

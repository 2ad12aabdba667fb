"""The lines of a batch file: one request each, in the shape of OpenAI's batch files.

    {"custom_id": "a-1", "method": "POST", "url": "/api/v1/jobs", "headers": {…}, "body": {…}}

`url` is a path of the app, or the absolute URL of a provider that an egress policy knows. A body that is text
goes out as it is where `headers` name a Content-Type other than JSON; every other one goes out as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from sidecar.batch.jobs import Item
from sidecar.headers import REQUEST_KINDS, Kind
from sidecar.telemetry.redact import redact_url

LONGEST_LINE: Final = 4 << 20
LONGEST_ID: Final = 256
"""Characters of a `custom_id`."""
_EXAMPLE: Final = '{"custom_id": "1", "method": "GET", "url": "/api/v1/health"}'
_MEMBERS: Final = frozenset({"custom_id", "method", "url", "headers", "body"})
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
_DIGITS: Final = 20
"""Of the largest whole number of 64 bits, and of the least with its sign."""
_LONG_NUMBER: Final = re.compile(rb"\d{19}")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BOM: Final = b"\xef\xbb\xbf"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_TEXT: Final = "write the file in UTF-8"


class BadLine(ValueError):
    """What is wrong with a line; the message ends with the mend."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a line asks for."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class Splitter:
    """Cuts a body that arrives in pieces into lines. Holds one line at most."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self.number = 0
        """Of the last line that `feed` or `end` gave."""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Number and text of each line that is complete; None for one above `LONGEST_LINE`."""
        first, *others = data.split(b"\n")
        self._rest += first
        for other in others:
            self.number += 1
            yield self.number, self._take()
            self._rest = other
        if len(self._rest) > LONGEST_LINE:
            self._skipping = True
            self._rest = b""

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        """The last line, where no line break ended it."""
        if self._rest or self._skipping:
            self.number += 1
            yield self.number, self._take()

    def _take(self) -> bytes | None:
        line = self._rest
        self._rest = b""
        if self._skipping or len(line) > LONGEST_LINE:
            self._skipping = False
            return None
        return line


def too_long() -> BadLine:
    return BadLine(
        f"the line is longer than {LONGEST_LINE >> 20} MiB (split the request, or send it by itself)"
    )


def parse(number: int, line: bytes, repeatable: Callable[[Asked], bool]) -> Item:
    """The line as it is kept. Raises BadLine.

    `repeatable` finds the route of a request, and tells whether asking twice does no more than once; it
    raises BadLine where there is no route.
    """
    if number == 1:
        if line.startswith(_UTF16):
            raise BadLine(f"this is UTF-16, not UTF-8 ({_TEXT})")
        line = line.removeprefix(_BOM)
    members = _members(line)
    if unknown := [name for name in members if name not in _MEMBERS]:
        raise BadLine(f'"{_cut(unknown[0])}" is not known (only {", ".join(sorted(_MEMBERS))} are)')
    custom_id = members.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        raise BadLine(
            '"custom_id" is missing or no text (give each line a text of its own: "custom_id": "1")'
        )
    if len(custom_id) > LONGEST_ID:
        raise BadLine(f'"custom_id" has more than {LONGEST_ID} characters (shorten it)')
    method = _method(members.get("method"))
    url = _url(members.get("url"))
    headers = _headers(members.get("headers") or {})
    body = members.get("body")
    if body is not None and method in ("GET", "HEAD"):
        raise BadLine(f'a {method} has no body (leave "body" out, or use POST)')
    asked = Asked(method, url, headers, encoded(body, headers))
    request = orjson.dumps({"method": method, "url": url, "headers": headers, "body": body})
    return Item(number, custom_id, request, repeatable(asked))


def asked_of(item: Item) -> Asked:
    """What a line that is kept asks for."""
    members: dict[str, Any] = orjson.loads(item.request)
    headers = members["headers"]
    return Asked(members["method"], members["url"], headers, encoded(members["body"], headers))


def encoded(body: object, headers: Mapping[str, str]) -> bytes:
    """A body as it goes out."""
    if body is None:
        return b""
    if isinstance(body, str):
        kind = content_type(headers)
        if kind is not None and "json" not in kind.lower():
            return body.encode()
    return orjson.dumps(body)


def content_type(headers: Mapping[str, str]) -> str | None:
    return next((value for name, value in headers.items() if name.lower() == "content-type"), None)


def _members(line: bytes) -> dict[str, Any]:
    try:
        members = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode()
        except UnicodeDecodeError as wrong:
            raise BadLine(f"byte {wrong.start + 1} is not UTF-8 ({_TEXT})") from None
        if line.lstrip().startswith(b"["):
            raise BadLine(
                "a JSON array, not an object (write one object a line, without [ ] around)"
            ) from None
        why = str(error).partition(": line")[0]
        raise BadLine(f"not JSON: {why} at column {error.colno} (write for example {_EXAMPLE})") from None
    if not isinstance(members, dict):
        raise BadLine(f"not a JSON object (write for example {_EXAMPLE})")
    if _LONG_NUMBER.search(line):  # few lines have one, and this is slow
        json.loads(line, parse_int=_exact)
    return members


def _exact(digits: str) -> int:
    """Raises BadLine for a whole number that would be kept as a float."""
    number = int(digits) if len(digits) <= _DIGITS else 1 << 64
    if not -(1 << 63) <= number < 1 << 64:
        raise BadLine(
            f"the number {_cut(digits)} has more than 64 bits, and would lose digits (write it as text)"
        )
    return number


def _method(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadLine('"method" is missing or no text (write for example "method": "POST")')
    if value not in _METHODS:
        raise BadLine(f'"method" is "{_cut(value)}" (write one of {", ".join(_METHODS)})')
    return value


def _url(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise BadLine('"url" is missing or no text (write for example "url": "/api/v1/jobs")')
    shown = _cut(redact_url(value))
    if re.search(r"[^\x21-\x7e]", value):
        raise BadLine(f'"url" has characters that a URL cannot have: "{shown}" (percent-encode them)')
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise BadLine(f'"url" is no URL: "{shown}" (write a path, or http(s)://host/path)') from None
    if parts.fragment or "#" in value:
        raise BadLine(f'"url" has a fragment: "{shown}" (leave out # and what follows)')
    if parts.scheme or parts.netloc:
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BadLine(f'"url" is no http(s) URL: "{shown}" (write a path, or http(s)://host/path)')
        if "@" in parts.netloc:
            raise BadLine('"url" has a user name in it (leave it out; use headers)')
    elif not value.startswith("/"):
        raise BadLine(f'"url" is neither a path nor a URL: "{shown}" (begin it with /)')
    return value


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadLine('"headers" is not an object (write for example "headers": {"Accept": "text/plain"})')
    for name, text in value.items():
        shown = _cut(name)
        if not _TOKEN.fullmatch(name):
            raise BadLine(f'"{shown}" is not the name of a header (use letters, digits and -)')
        kind = REQUEST_KINDS.get(name.lower().encode(), Kind.PLAIN)
        if kind is not Kind.PLAIN:
            raise BadLine(f"the header {shown} is the sidecar's to set (leave it out)")
        if not isinstance(text, str):
            raise BadLine(f'the header {shown} is no text (write it in quotes: "{shown}": "…")')
        if re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text) or not _latin(text):
            raise BadLine(f"the header {shown} has characters that a header cannot have (encode them)")
    return value


def _latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"

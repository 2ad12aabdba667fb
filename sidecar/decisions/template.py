"""Answers with variables: compiled once, then filled in from a request. No code, no expressions.

`{name}` stands for a variable, `{{name}}` for itself, in braces; any other brace is a brace. A value is
data, and nothing it holds changes what stands around it:

* in JSON only strings have variables, and a value is escaped as part of the string (RFC 8259, 7);
* in HTML and XML what those know as markup is escaped;
* in a header a value is percent-encoded (RFC 3986, 2.1): no line can end within it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

import orjson

QUERY: Final = "query."
"""Begins the names of variables that are parameters of the query."""
_NAME: Final = rf"(?:{re.escape(QUERY)}[^{{}}]+|[A-Za-z_][A-Za-z0-9_]*)"
_VARIABLE: Final = re.compile(rf"\{{(\{{{_NAME}\}})\}}|\{{({_NAME})\}}")

Escape = Callable[[str], bytes]


class Template:
    """Bytes with places for variables."""

    __slots__ = ("_escape", "_parts", "names", "whole")

    def __init__(self, parts: Iterable[bytes | str], escape: Escape) -> None:
        """`parts`: bytes as they are, or the name of a variable."""
        joined: list[bytes | str] = []
        for part in parts:
            if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
                joined[-1] += part
            else:
                joined.append(part)
        self._parts = tuple(joined)
        self._escape = escape
        self.names = tuple(dict.fromkeys(part for part in joined if isinstance(part, str)))
        """Its variables."""
        self.whole: bytes | None = None
        """All of it, where there is no variable."""
        if not self.names:
            self.whole = b"".join(part for part in joined if isinstance(part, bytes))

    def render(self, values: Mapping[str, str]) -> bytes:
        """The bytes for these values of its variables."""
        if self.whole is not None:
            return self.whole
        escape = self._escape
        return b"".join([part if isinstance(part, bytes) else escape(values[part]) for part in self._parts])


def variables(text: str) -> list[str]:
    """The names of the variables in `text`, in order, each as often as it is there."""
    return [found[2] for found in _VARIABLE.finditer(text) if found[2] is not None]


def strings(document: str) -> list[str]:
    """The strings of a JSON text that may have variables: values, not the names of members."""
    return list(_strings_within(json.loads(document)))


def _strings_within(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings_within(item)


def json_template(document: str) -> Template:
    """Of JSON text."""
    return Template(_json_parts(json.loads(document)), _in_json)


def _json_parts(value: Any) -> Iterator[bytes | str]:
    if isinstance(value, str) and variables(value):
        yield b'"'
        yield from _split(value, _in_json)
        yield b'"'
    elif isinstance(value, dict):
        opening = b"{"
        for name, member in value.items():
            yield opening + orjson.dumps(name) + b":"
            yield from _json_parts(member)
            opening = b","
        yield b"{}" if opening == b"{" else b"}"
    elif isinstance(value, list):
        opening = b"["
        for item in value:
            yield opening
            yield from _json_parts(item)
            opening = b","
        yield b"[]" if opening == b"[" else b"]"
    else:
        plain = _VARIABLE.sub(_unescape, value) if isinstance(value, str) else value
        yield json.dumps(plain, ensure_ascii=False).encode()


def text_template(text: str, content_type: str) -> Template:
    """Of text in UTF-8; what `content_type` calls HTML or XML has its values escaped."""
    markup = "html" in content_type.lower() or "xml" in content_type.lower()
    return Template(_split(text, str.encode), _in_markup if markup else str.encode)


def header_template(text: str) -> Template:
    """Of the value of a header field."""
    return Template(_split(text, str.encode), _in_header)


def _split(text: str, literal: Escape) -> Iterator[bytes | str]:
    at = 0
    for found in _VARIABLE.finditer(text):
        yield literal(text[at : found.start()])
        yield literal(found[1]) if found[2] is None else found[2]
        at = found.end()
    yield literal(text[at:])


def _unescape(found: re.Match[str]) -> str:
    return found[1] or found[0]


def _in_json(value: str) -> bytes:
    return orjson.dumps(value)[1:-1]


def _in_markup(value: str) -> bytes:
    return html.escape(value).encode()


def _in_header(value: str) -> bytes:
    return quote(value, safe="").encode("ascii")


def decoded(raw: bytes) -> str:
    """A part of a path as text: percent-decoded, UTF-8; bytes that are none become U+FFFD."""
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def parameter(query: bytes, name: str) -> str:
    """The first parameter of that name in a query, as a form would decode it; empty where there is none."""
    wanted = name.encode()
    for part in query.split(b"&"):
        raw, _, value = part.partition(b"=")
        if unquote_to_bytes(raw.replace(b"+", b" ")) == wanted:
            return decoded(value.replace(b"+", b" "))
    return ""

"""What members a JSON text has, as far as can be seen without parsing it.

Parsing 64 KiB makes thousands of objects and costs 0.3 ms; to look for a name costs a tenth of that. It
errs on one side only: what is said not to be there is not. It may take what stands within a string for a
member, and does not know how deep in the text a member is.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import orjson

PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_]+")
"""Names that JSON can spell in one way only, but for `\\u00XX` (RFC 8259, 7)."""
_ESCAPED: Final = re.compile(rb"\\u00(?:3[0-9]|4[1-9A-Fa-f]|5[0-9AFaf]|6[1-9A-Fa-f]|7[0-9Aa])")
"""A letter, a digit or a `_` that is spelled so."""
_VALUE: Final = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*(?:"([^"\\]*)("?))?')
_MOST: Final = 32
"""Members of one name that are looked at; with more of them parsing is no dearer."""


class Members(NamedTuple):
    """What members of one name hold, wherever they are."""

    texts: tuple[str, ...]
    others: bool
    """Some hold something else than text."""
    unknown: bool
    """Some may hold anything: not all of them could be read."""


_NONE: Final = Members((), others=False, unknown=False)
_UNKNOWN: Final = Members((), others=True, unknown=True)


UNCLEAR: Final = object()
"""It cannot be said without parsing the whole."""
ABSENT: Final = object()
_BACKSLASH: Final = ord("\\")
_TRIES: Final = 4
"""Members of one name that are tried; with more of them parsing the whole is no dearer."""


def obscure(text: bytes) -> bool:
    """Whether names may be spelled in ways that are not looked for."""
    # One byte is found ten times as fast as four, and most texts have none.
    return b"\\" in text and b"\\u00" in text and _ESCAPED.search(text) is not None


def top_member(text: bytes, name: str) -> Any:
    """The value of the last member of that name (a `PLAIN_NAME`) of the object that is the text; `ABSENT`, or
    `UNCLEAR`, of a text that is not `obscure`.

    Only a part of the text is parsed, and so the rest is not found wrong where it is: what goes on to the
    end with a single `}` too many is of the outermost object, as is what a `}` completes from the start.
    """
    token = b'"%b"' % name.encode("ascii")
    at = len(text)
    answer: object = ABSENT
    for _ in range(_TRIES):
        at = text.rfind(token, 0, at)
        if at < 0:
            return answer
        value = _VALUE.match(text, at + len(token))
        if value is None or (at and text[at - 1] == _BACKSLASH):  # a text, or within one
            continue
        answer = UNCLEAR
        end = value.end() if value[2] else len(text)
        part = text[:end] + b"}" if end < len(text) - at else b"{" + text[at:]
        try:
            return orjson.loads(part)[name]
        except orjson.JSONDecodeError:
            pass
    return UNCLEAR


class Skim:
    """One text; each name is looked for once."""

    __slots__ = ("_found", "_text", "obscure")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._found: dict[str, Members] = {}
        self.obscure = obscure(text)
        """Names may be spelled in ways that are not looked for: nothing can be said of this text."""

    def members(self, name: str) -> Members:
        """Those of that name, which must be a `PLAIN_NAME`."""
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = self._look(b'"%b"' % name.encode("ascii"))
        return found

    def _look(self, token: bytes) -> Members:
        text = self._text
        at = text.find(token)
        if at < 0:
            return _NONE
        texts: list[str] = []
        others = unknown = False
        for _ in range(_MOST):
            value = _VALUE.match(text, at + len(token))
            if value is not None:  # else it is no name, but a text
                string, end = value.groups()
                if string is None:
                    others = True
                elif end:
                    texts.append(string.decode("utf-8", "replace"))
                else:  # an escape within
                    unknown = True
            at = text.find(token, at + 1)
            if at < 0:
                return Members(tuple(texts), others=others, unknown=unknown)
        return _UNKNOWN

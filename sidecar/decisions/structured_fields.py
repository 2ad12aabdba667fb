"""Structured Fields (RFC 9651): the two containers that our fields use, Dictionary and List.

A field that does not parse is ignored as a whole (RFC 9651, 4.2), so every function here says None
for it. Of the bare types only those that our fields use are told apart.
"""

from __future__ import annotations

import re
from typing import Final

_KEY: Final = re.compile(r"[a-z*][a-z0-9_\-.*]*")
_ITEM: Final = re.compile(
    r"""(?P<decimal>-?\d{1,12}\.\d{1,3}(?![\d.]))
      | (?P<integer>-?\d{1,15}(?![\d.]))
      | "(?P<string>(?:[ !#-\[\]-~]|\\["\\])*)"
      | (?P<token>[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*)
      | \?(?P<boolean>[01])
      | (?P<other>:[A-Za-z0-9+/=]*: | @-?\d{1,15}(?![\d.]) | %"(?:[ !\#$&-~]|%[0-9a-f]{2})*")
    """,
    re.VERBOSE,
)
_COMMA: Final = re.compile(r"[ \t]*(?:,[ \t]*|\Z)")
_SPACES: Final = re.compile(r" *")
_ESCAPED: Final = re.compile(r"\\(.)")


class Token(str):
    """A bare word; a `str` that is no Token was quoted."""

    __slots__ = ()


class Other:
    """A valid item of a type that no field of ours uses: Byte Sequence, Date, Display String."""

    __slots__ = ()


class InnerList(tuple["Bare", ...]):
    """Items in parentheses."""

    __slots__ = ()


Bare = int | float | str | bool | Token | Other | InnerList


class _MalformedError(ValueError):
    """The field is not a structured field of the asked type."""


class _Reader:
    __slots__ = ("at", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def take(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise _MalformedError
        self.at = found.end()
        return found

    def sees(self, character: str) -> bool:
        if not self.text.startswith(character, self.at):
            return False
        self.at += 1
        return True

    def item(self) -> Bare:
        found = self.take(_ITEM)
        kind, text = found.lastgroup, found[found.lastgroup or 0]
        if kind == "integer":
            return int(text)
        if kind == "decimal":
            return float(text)
        if kind == "string":
            return _ESCAPED.sub(r"\1", text)
        if kind == "token":
            return Token(text)
        if kind == "boolean":
            return text == "1"
        return Other()

    def member(self) -> tuple[Bare, dict[str, Bare]]:
        value = self.inner_list() if self.sees("(") else self.item()
        return value, self.parameters()

    def inner_list(self) -> InnerList:
        items: list[Bare] = []
        while True:
            self.take(_SPACES)
            if self.sees(")"):
                return InnerList(items)
            items.append(self.item())
            self.parameters()
            if not self.text.startswith((" ", ")"), self.at):
                raise _MalformedError

    def parameters(self) -> dict[str, Bare]:
        parameters: dict[str, Bare] = {}
        while self.sees(";"):
            self.take(_SPACES)
            key = self.take(_KEY)[0]
            parameters[key] = self.item() if self.sees("=") else True
        return parameters

    def more(self) -> bool:
        """Goes past the comma that another member follows; False at the end."""
        return self.take(_COMMA)[0].strip(" \t") == ","


def _reader(value: bytes) -> _Reader:
    try:
        return _Reader(value.strip(b" ").decode("ascii"))
    except UnicodeDecodeError:
        raise _MalformedError from None


def parse_dictionary(value: bytes) -> dict[str, Bare] | None:
    """Members in order, parameters left out; the last of equal keys counts (RFC 9651, 4.2.2)."""
    members: dict[str, Bare] = {}
    try:
        reader = _reader(value)
        more = bool(reader.text)
        while more:
            key = reader.take(_KEY)[0]
            if reader.sees("="):
                members[key], _ = reader.member()
            else:
                reader.parameters()
                members[key] = True
            more = reader.more()
    except _MalformedError:
        return None
    return members


def parse_list(value: bytes) -> list[Bare] | None:
    """Members in order, parameters left out (RFC 9651, 4.2.1)."""
    members = parse_members(value)
    return None if members is None else [member for member, _ in members]


def parse_members(value: bytes) -> list[tuple[Bare, dict[str, Bare]]] | None:
    """Members of a List in order, each with its parameters (RFC 9651, 4.2.1)."""
    members: list[tuple[Bare, dict[str, Bare]]] = []
    try:
        reader = _reader(value)
        more = bool(reader.text)
        while more:
            members.append(reader.member())
            more = reader.more()
    except _MalformedError:
        return None
    return members


def string(value: str) -> bytes:
    """`value` as a String (RFC 9651, 4.1.6); what a String cannot hold becomes `?`."""
    text = re.sub(r"[^ -~]", "?", value)
    return b'"%b"' % re.sub(r'(["\\])', r"\\\1", text).encode("ascii")

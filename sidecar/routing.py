"""Which route a request belongs to: the first whose `match` fits it. Pure, compiled once.

Most requests are decided by two dictionary look-ups (method, then literal path) or by one regular
expression per method, whose alternatives are the routes in order. Only routes that look at the host
or at headers are tried one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.decisions.globs import glob_covers, glob_pattern

if TYPE_CHECKING:
    from sidecar.config.schema import Match
    from sidecar.headers import Line

_VARIABLE: Final = re.compile(r"\{([^{}]*)\}")
_SEGMENT: Final = "\x00"
"""Stands for a variable in `covers`: no path holds it."""
_TAIL: Final = "\x01"


class _Rule:
    """One route's conditions, ready to be tried."""

    __slots__ = ("headers", "host", "literal", "methods", "path")

    def __init__(self, match: Match) -> None:
        self.methods = frozenset(match.method)
        self.literal = "{" not in match.path and not match.path.endswith("*")
        self.path = re.compile(path_pattern(match.path), re.DOTALL)
        self.host = None if match.host is None else re.compile(glob_pattern(match.host).encode("latin-1"))
        self.headers = tuple(
            (name.encode("latin-1"), re.compile(glob_pattern(value).encode(), re.DOTALL))
            for name, value in match.headers
        )

    @property
    def conditional(self) -> bool:
        """Method and path do not settle it."""
        return self.host is not None or bool(self.headers)

    def takes(self, method: str) -> bool:
        return not self.methods or method in self.methods

    def allows(self, host: bytes, headers: Sequence[Line]) -> bool:
        if self.host is not None and not self.host.fullmatch(_without_port(host).lower()):
            return False
        return all(
            any(line.name == name and value.fullmatch(line.value) for line in headers)
            for name, value in self.headers
        )


class _Table:
    """The routes that take one method."""

    __slots__ = ("conditional", "literal", "numbers", "pattern", "rest", "rules")

    def __init__(self, rules: Sequence[tuple[int, _Rule, str]]) -> None:
        self.rules = tuple((index, rule) for index, rule, _ in rules)
        self.conditional = frozenset(index for index, rule in self.rules if rule.conditional)
        # The regular expression needs no literal paths, but for those that a conditional route
        # before them may leave over: a look-up knows one route of a path only.
        self.literal: dict[str, int] = {}
        for _, rule, path in rules:
            if rule.literal and path not in self.literal:
                first = next(index for index, other in self.rules if other.path.fullmatch(path))
                self.literal[path] = first
        variable = [(index, path) for index, rule, path in rules if not rule.literal]
        everything = [index for index, path in variable if path == "*"]
        self.rest = everything[0] if everything else None
        """The first route for all paths: of those after it none is ever asked."""
        variable = [it for it in variable if self.rest is None or it[0] < self.rest]
        self.numbers = tuple(index for index, _ in variable)
        self.pattern = (
            re.compile("|".join(f"({path_pattern(path, named=False)})" for _, path in variable), re.DOTALL)
            if variable
            else None
        )

    def first(self, path: str) -> int | None:
        """The first route for `path`, its other conditions not looked at."""
        index = self.literal.get(path)
        if index is None and self.pattern is not None:
            found = self.pattern.fullmatch(path)
            if found is not None:
                assert found.lastindex is not None
                return self.numbers[found.lastindex - 1]
        return self.rest if index is None else index


class Matcher:
    """The routes of all policy files, in order. Answers with a route's index in that order."""

    __slots__ = ("_other", "_rules", "_tables")

    def __init__(self, matches: Iterable[Match]) -> None:
        listed = list(matches)
        self._rules = tuple(_Rule(match) for match in listed)
        numbered = [
            (index, rule, match.path)
            for index, (rule, match) in enumerate(zip(self._rules, listed, strict=True))
        ]
        methods = frozenset(method for rule in self._rules for method in rule.methods)
        self._tables = {
            method: _Table([it for it in numbered if it[1].takes(method)]) for method in sorted(methods)
        }
        self._other = _Table([it for it in numbered if not it[1].methods])
        """For methods that no route names."""

    def match(self, method: str, host: bytes, path: str, headers: Sequence[Line]) -> int | None:
        """The index of the first route that fits, None where none does.

        `host` is the value of `Host`, `path` the path as it is on the wire, without the query.
        """
        table = self._tables.get(method, self._other)
        index = table.first(path)
        if index is None or index not in table.conditional:
            return index
        for number, rule in table.rules:
            if number >= index and rule.path.fullmatch(path) and rule.allows(host, headers):
                return number
        return None

    def looks_at(self, method: str, path: str) -> frozenset[bytes]:
        """The headers, in lower case, that may decide which route a request for `path` belongs to."""
        rules = self._tables.get(method, self._other).rules
        return frozenset(name for _, it in rules if it.path.fullmatch(path) for name, _ in it.headers)

    def variables(self, index: int, path: str) -> dict[str, str]:
        """What the `{names}` of a route's path stand for in `path`, as it is on the wire."""
        found = self._rules[index].path.fullmatch(path)
        return found.groupdict() if found is not None else {}


def path_pattern(path: str, *, named: bool = True) -> str:
    """A path of `match` as a regular expression, for `fullmatch` with DOTALL."""
    tail = path.endswith("*")
    parts = _VARIABLE.split(path.removesuffix("*"))
    pattern = re.escape(parts[0])
    for name, literal in zip(parts[1::2], parts[2::2], strict=True):
        pattern += (f"(?P<{name}>[^/]+)" if named else "[^/]+") + re.escape(literal)
    return pattern + (".*" if tail else "")


def _without_port(host: bytes) -> bytes:
    if host.endswith(b"]"):
        return host
    name, colon, port = host.rpartition(b":")
    return name if colon and port.isdigit() else host


def covers(a: Match, b: Match) -> bool:
    """Whether `a` matches all requests that `b` matches. May say no where it cannot tell."""
    if a.method and not (b.method and set(b.method) <= set(a.method)):
        return False
    if not _path_covers(a.path, b.path):
        return False
    if a.host is not None and (b.host is None or not glob_covers(a.host, b.host)):
        return False
    asked: dict[str, str] = dict(b.headers)
    return all(name in asked and glob_covers(glob, asked[name]) for name, glob in a.headers)


def _path_covers(a: str, b: str) -> bool:
    # A variable of b is one symbol that only a variable or the tail of a takes.
    tail = b.endswith("*")
    example = _VARIABLE.sub(_SEGMENT, b.removesuffix("*")) + (_TAIL if tail else "")
    if tail and not a.endswith("*"):
        return False
    pattern = path_pattern(a, named=False).replace("[^/]+", f"[^/{_TAIL}]+")
    return re.fullmatch(pattern, example, re.DOTALL) is not None

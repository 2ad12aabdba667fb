r"""What must be found in a JSON value: paths, and what may stand there.

A path is names joined by dots. A name that is a whole number is an index too, where it meets an array:
`rows.0.status`, also written `rows[0].status`. `*` is any member of an object, or any element of an
array. A backslash takes a dot, a star, a bracket or a backslash for what it is: `a\.b`.

At a path stands one of some values (`OneOf`), or an object or array for which more must hold (`All`);
behind a `*` all of that must hold for the same member. Values are equal as JSON has them: 0 and 0.0 are
one number (RFC 8259, 6), `true` is no number, text is compared character by character. In text `*`
stands for any characters. The text `*` alone is anything but null: something is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sidecar.decisions.globs import glob_covers, glob_pattern
from sidecar.decisions.skim import PLAIN_NAME, Skim

Scalar = str | int | float | bool | None
ANYTHING: Final = "*"
_PART: Final = re.compile(r"(?:\\[.*\[\]\\]|[^.*\[\]\\])+")
_BRACKETED: Final = re.compile(r"\[([0-9]+|\*)\]")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of these values; text may hold `*`."""

    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class All:
    """Paths, each with what must be there."""

    conditions: tuple[tuple[str, OneOf | All], ...]


class Step(NamedTuple):
    name: str
    place: int
    """Of an array's element; -1 where the name is none."""


Path = tuple[Step | None, ...]
"""None is any member or element."""


def parse_path(text: str) -> Path:
    """The steps of a path. Raises ValueError with what is wrong."""
    steps: list[Step | None] = []
    at = 0
    while True:
        if bracketed := _BRACKETED.match(text, at):
            if at and text[at - 1] == ".":
                raise ValueError("a [ follows a name, not a dot")
            inside = bracketed[1]
            steps.append(None if inside == "*" else _step(inside))
            at = bracketed.end()
        elif text.startswith("*", at):
            steps.append(None)
            at += 1
        elif part := _PART.match(text, at):
            steps.append(_step(_ESCAPED.sub(r"\1", part[0])))
            at = part.end()
        else:
            raise ValueError(_wrong(text, at))
        if at == len(text):
            return tuple(steps)
        if text[at] == ".":
            at += 1
        elif text[at] != "[":
            raise ValueError(_wrong(text, at))


def _step(name: str) -> Step:
    return Step(name, int(name) if name.isascii() and name.isdigit() and len(name) < 10 else -1)


def _wrong(text: str, at: int) -> str:
    if at >= len(text) or text[at] == ".":
        return "a name is missing"
    if text[at] == "*" or (at and text[at - 1] == "*"):
        return "* stands for a whole name"
    if text[at] == "\\":
        return "a backslash stands before a dot, a star, a bracket or a backslash"
    return "brackets hold an index or *"


class Condition:
    """One path, and what must be there."""

    __slots__ = ("_name", "_path", "_test")

    def __init__(self, path: Path, written: OneOf | All) -> None:
        self._path = path
        last = path[-1]
        named = last is not None and last.place < 0 and PLAIN_NAME.fullmatch(last.name)
        self._name = last.name if last is not None and named else None
        """Of the member that it is about; None where it may be an element, or be spelled in many ways."""
        self._test: Pattern | _Values = Pattern(written) if isinstance(written, All) else _Values(written)

    def holds(self, value: Any, at: int = 0) -> bool:
        """For a value as a JSON parser gives it; `at`: how many steps led to it."""
        path = self._path
        for number in range(at, len(path)):
            step = path[number]
            kind = type(value)
            if step is None:
                inner = value.values() if kind is dict else value if kind is list else ()
                return any(self.holds(each, number + 1) for each in inner)
            if kind is dict:
                value = value.get(step.name, _MISSING)
                if value is _MISSING:
                    return False
            elif kind is list and 0 <= step.place < len(value):
                value = value[step.place]
            else:
                return False
        return self._test.holds(value)

    @property
    def top(self) -> str | None:
        """The member of the outermost object that it looks at; None where it may look at others."""
        step = self._path[0]
        return step.name if step is not None and step.place < 0 and PLAIN_NAME.fullmatch(step.name) else None

    def may_hold(self, skim: Skim) -> bool:
        """False where it surely does not hold for the text."""
        if isinstance(self._test, Pattern):
            return self._test.may_hold(skim)
        return self._name is None or self._test.may_hold(skim, self._name)


class Pattern:
    """An `All`, compiled."""

    __slots__ = ("_conditions", "tops")

    def __init__(self, written: All) -> None:
        """Raises ValueError where a path is none."""
        self._conditions = tuple(Condition(path, test) for path, test in _flat(written))
        self.tops = frozenset(condition.top for condition in self._conditions)
        """See `Condition.top`."""

    def holds(self, value: Any) -> bool:
        for condition in self._conditions:  # noqa: SIM110 - a generator costs more than the rest
            if not condition.holds(value):
                return False
        return True

    def may_hold(self, skim: Skim) -> bool:
        """False where it surely does not hold for the text."""
        return all(condition.may_hold(skim) for condition in self._conditions)


class _Values:
    """A `OneOf`, sorted by type."""

    __slots__ = ("_anything", "_booleans", "_globs", "_null", "_numbers", "_texts")

    def __init__(self, written: OneOf) -> None:
        texts = [value for value in written.values if isinstance(value, str)]
        self._anything = ANYTHING in texts
        self._texts = frozenset(text for text in texts if "*" not in text)
        self._globs = tuple(re.compile(glob_pattern(text), re.DOTALL) for text in texts if "*" in text)
        self._booleans = frozenset(value for value in written.values if isinstance(value, bool))
        self._numbers = frozenset(
            value
            for value in written.values
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        )
        self._null = None in written.values

    def holds(self, value: Any) -> bool:
        if value is None:
            return self._null
        if self._anything:
            return True
        kind = type(value)
        if kind is str:
            return value in self._texts or any(glob.fullmatch(value) for glob in self._globs)
        if kind is bool:
            return value in self._booleans
        return (kind is int or kind is float) and value in self._numbers

    def may_hold(self, skim: Skim, name: str) -> bool:
        """Whether one of the members of that name may hold such a value."""
        members = skim.members(name)
        if members.unknown:
            return True
        if members.others and (self._anything or self._null or self._booleans or self._numbers):
            return True
        return any(self.holds(text) for text in members.texts)


def _flat(written: All, before: Path = ()) -> list[tuple[Path, OneOf | All]]:
    """Each path from the top; what is behind a `*` stays together."""
    found: list[tuple[Path, OneOf | All]] = []
    for text, test in written.conditions:
        path = (*before, *parse_path(text))
        if isinstance(test, All) and None not in path:
            found += _flat(test, path)
        else:
            found.append((path, test))
    return found


def covers(wide: All, narrow: All) -> bool:
    """Whether `wide` holds for all that `narrow` holds for. May say no where it cannot tell."""
    there = _flat(narrow)
    return all(
        any(path == other and _test_covers(test, theirs) for other, theirs in there)
        for path, test in _flat(wide)
    )


def _test_covers(wide: OneOf | All, narrow: OneOf | All) -> bool:
    if isinstance(narrow, All):
        return covers(wide, narrow) if isinstance(wide, All) else ANYTHING in wide.values
    return isinstance(wide, OneOf) and all(
        any(_value_covers(value, theirs) for value in wide.values) for theirs in narrow.values
    )


def _value_covers(wide: Scalar, narrow: Scalar) -> bool:
    if wide == ANYTHING:
        return narrow is not None
    if isinstance(wide, str) and isinstance(narrow, str):
        return narrow != ANYTHING and glob_covers(wide, narrow)
    return isinstance(wide, bool) == isinstance(narrow, bool) and wide == narrow


def plain(written: OneOf | All) -> Scalar | list[Scalar] | Mapping[str, Any]:
    """As it is written: mappings, lists and values."""
    if isinstance(written, All):
        return {path: plain(test) for path, test in written.conditions}
    return written.values[0] if len(written.values) == 1 else list(written.values)

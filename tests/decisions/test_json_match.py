"""Conditions on JSON values, in tables and against a plain reading of the rules."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.globs import glob_covers
from sidecar.decisions.json_match import All, OneOf, Pattern, Step, covers, parse_path, plain


def written(value: Any) -> All:
    """A condition as a mapping says it."""

    def test(inner: Any) -> OneOf | All:
        if isinstance(inner, dict):
            return written(inner)
        return OneOf(tuple(inner) if isinstance(inner, list) else (inner,))

    return All(tuple((path, test(inner)) for path, inner in value.items()))


def holds(conditions: Any, body: str) -> bool:
    return Pattern(written(conditions)).holds(orjson.loads(body))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("status", [("status", -1)]),
        ("error.code", [("error", -1), ("code", -1)]),
        ("rows[0].status", [("rows", -1), ("0", 0), ("status", -1)]),
        ("rows.0.status", [("rows", -1), ("0", 0), ("status", -1)]),
        ("rows[12][*]", [("rows", -1), ("12", 12), None]),
        ("[0].a", [("0", 0), ("a", -1)]),
        ("*.code", [None, ("code", -1)]),
        (r"a\.b.\*.c\[0\]\\", [("a.b", -1), ("*", -1), ("c[0]\\", -1)]),
        ("x-y z.ç", [("x-y z", -1), ("ç", -1)]),
        ("²", [("²", -1)]),
    ],
)
def test_paths(text: str, path: list[tuple[str, int] | None]) -> None:
    """Names, indices, stars; a backslash makes a name of any of these."""
    assert parse_path(text) == tuple(None if step is None else Step(*step) for step in path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a name is missing"),
        ("a.", "a name is missing"),
        (".a", "a name is missing"),
        ("a..b", "a name is missing"),
        ("a*", "* stands for a whole name"),
        ("*a", "* stands for a whole name"),
        ("a.**", "* stands for a whole name"),
        ("a[", "brackets hold an index or *"),
        ("a[b]", "brackets hold an index or *"),
        ("a[-1]", "brackets hold an index or *"),
        ("a]", "brackets hold an index or *"),
        ("a[0]b", "brackets hold an index or *"),
        ("a.[0]", "a [ follows a name, not a dot"),
        ("a\\n", "a backslash stands before a dot, a star, a bracket or a backslash"),
        ("a\\", "a backslash stands before a dot, a star, a bracket or a backslash"),
    ],
)
def test_what_is_no_path(text: str, reason: str) -> None:
    """Each is refused with what is wrong about it."""
    with pytest.raises(ValueError, match="^" + reason.replace("*", r"\*").replace("[", r"\[") + "$"):
        parse_path(text)


@pytest.mark.parametrize(
    ("conditions", "body"),
    [
        ({"status": "OK"}, '{"status": "OK"}'),
        ({"error.code": "a"}, '{"error": {"code": "a"}}'),
        ({"error": {"code": "a"}}, '{"error": {"code": "a"}}'),
        ({"error": {"code": "a", "type": "b"}}, '{"error": {"type": "b", "code": "a"}}'),
        ({"status": ["A", "OK"]}, '{"status": "OK"}'),
        ({"message": "*daily*"}, '{"message": "your\\ndaily quota"}'),
        ({"distance_km": 0}, '{"distance_km": 0.0}'),
        ({"distance_km": 0.0}, '{"distance_km": 0}'),
        ({"distance_km": 0}, '{"distance_km": -0.0}'),
        ({"n": 1e3}, '{"n": 1000}'),
        ({"ok": True}, '{"ok": true}'),
        ({"error": None}, '{"error": null}'),
        ({"error": [None, "x"]}, '{"error": null}'),
        ({"error": "*"}, '{"error": {"code": 1}}'),
        ({"error": "*"}, '{"error": false}'),
        ({"error": "*"}, '{"error": ""}'),
        ({"rows[1].a": 1}, '{"rows": [0, {"a": 1}]}'),
        ({"rows.1.a": 1}, '{"rows": [0, {"a": 1}]}'),
        ({"rows.1.a": 1}, '{"rows": {"1": {"a": 1}}}'),
        ({"rows[*].a": 1}, '{"rows": [{"a": 0}, {"a": 1}]}'),
        ({"*.a": 1}, '{"x": 1, "y": {"a": 1}}'),
        ({"*.*.a": 1}, '[[{"a": 1}]]'),
        ({"[0]": "x"}, '["x"]'),
        ({"rows[*]": {"a": 1, "b": 2}}, '{"rows": [{"a": 1}, {"a": 1, "b": 2}]}'),
        ({"a\\.b": 1}, '{"a.b": 1}'),
        ({"a b": 1}, '{"a b": 1}'),
    ],
)
def test_what_holds(conditions: Any, body: str) -> None:
    """Equal values at the end of a path."""
    assert holds(conditions, body)


@pytest.mark.parametrize(
    ("conditions", "body"),
    [
        ({"status": "OK"}, '{"status": "ok"}'),
        ({"status": "OK"}, '{"Status": "OK"}'),
        ({"status": "OK"}, '["OK"]'),
        ({"status": "OK"}, '"OK"'),
        ({"status": "OK"}, '{"status": ["OK"]}'),
        ({"a": "x", "b": "y"}, '{"a": "x"}'),
        ({"code": 429}, '{"code": "429"}'),
        ({"code": "429"}, '{"code": 429}'),
        ({"ok": True}, '{"ok": 1}'),
        ({"n": 1}, '{"n": true}'),
        ({"n": 0}, '{"n": false}'),
        ({"n": 0}, '{"n": null}'),
        ({"error": None}, "{}"),
        ({"error": None}, '{"error": {}}'),
        ({"error": "*"}, '{"error": null}'),
        ({"error": "*"}, "{}"),
        ({"rows[2]": 1}, '{"rows": [1, 1]}'),
        ({"rows[0]": 1}, '{"rows": []}'),
        ({"rows[*].a": 1}, '{"rows": []}'),
        ({"rows[*].a": 1}, '{"rows": "a"}'),
        ({"rows[*]": {"a": 1, "b": 2}}, '{"rows": [{"a": 1}, {"b": 2}]}'),
        ({"a.b": 1}, '{"a.b": 1}'),
    ],
)
def test_what_does_not_hold(conditions: Any, body: str) -> None:
    """Types, cases and places count; behind a star all must hold for the same element."""
    assert not holds(conditions, body)


NAMES = st.sampled_from(["a", "b", "0"])
LEAVES = st.sampled_from([None, True, False, 0, 1, 0.0, 1.5, "x", "xy", ""])
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
WANTED = st.sampled_from([None, True, False, 0, 1, 1.5, "x", "x*", "*", "*y"])
PATHS = st.lists(st.sampled_from(["a", "b", "0", "*"]), min_size=1, max_size=3).map(".".join)
CONDITIONS = st.recursive(
    WANTED | st.lists(WANTED, min_size=1, max_size=2),
    lambda inner: st.dictionaries(PATHS, inner, min_size=1, max_size=2),
    max_leaves=4,
).filter(lambda value: isinstance(value, dict))


def reached(value: Any, steps: list[str]) -> list[Any]:
    """All values at a path."""
    if not steps:
        return [value]
    step, *rest = steps
    inner: list[Any] = []
    if isinstance(value, dict):
        inner = list(value.values()) if step == "*" else [value[step]] if step in value else []
    elif isinstance(value, list):
        if step == "*":
            inner = value
        elif step.isdigit() and int(step) < len(value):
            inner = [value[int(step)]]
    return [found for each in inner for found in reached(each, rest)]


def naive_test(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, dict):
        return naive(wanted, value)
    if isinstance(wanted, list):
        return any(naive_test(each, value) for each in wanted)
    if wanted == "*":
        return value is not None
    if isinstance(wanted, str):
        return isinstance(value, str) and glob_covers(wanted, value)
    return isinstance(wanted, bool) == isinstance(value, bool) and wanted == value


def naive(conditions: Any, value: Any) -> bool:
    return all(
        any(naive_test(wanted, found) for found in reached(value, path.split(".")))
        for path, wanted in conditions.items()
    )


@given(CONDITIONS, JSON)
def test_a_pattern_is_what_it_says(conditions: Any, value: Any) -> None:
    """Compiled or read plainly, the same."""
    assert Pattern(written(conditions)).holds(value) is naive(conditions, value)


@given(CONDITIONS, CONDITIONS, JSON)
def test_what_covers_holds(wide: Any, narrow: Any, value: Any) -> None:
    """A pattern that covers another holds wherever that one does."""
    if covers(written(wide), written(narrow)) and naive(narrow, value):
        assert naive(wide, value)


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ({"a": "x*"}, {"a": ["xy", "xz"], "b": 1}, True),
        ({"error.code": "x"}, {"error": {"code": "x"}}, True),
        ({"error": "*"}, {"error": {"code[*]": {"a": 1}}}, False),
        ({"a[*]": {"b": [1, 2]}}, {"a.*": {"b": 2, "c": 3}}, True),
        ({"a": 0}, {"a": 0.0}, True),
        ({"a": 0}, {"a": False}, False),
        ({"a": "*"}, {"a": None}, False),
        ({"a": "x*"}, {"a": "*"}, False),
        ({"a": 1, "b": 1}, {"a": 1}, False),
        ({}, {"a": 1}, True),
    ],
)
def test_what_covers_what(wide: Any, narrow: Any, *, covered: bool) -> None:
    """For the lint that finds rules which never match."""
    assert covers(written(wide), written(narrow)) is covered


def test_it_is_shown_as_it_was_written() -> None:
    """Nested or dotted, single or as a list."""
    value = {"error": {"code": ["a", "b"]}, "rows[0].n": 1, "x": None}
    assert plain(written(value)) == value

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.globs import glob_covers, glob_pattern

GLOBS = st.text("ab*", max_size=6)
TEXTS = st.text("ab", max_size=8)


def matches(glob: str, text: str) -> bool:
    return re.fullmatch(glob_pattern(glob), text, re.DOTALL) is not None


def naive(glob: str, text: str) -> bool:
    """By trying every length for every star."""
    if not glob:
        return not text
    if glob[0] == "*":
        return any(naive(glob[1:], text[at:]) for at in range(len(text) + 1))
    return text[:1] == glob[0] and naive(glob[1:], text[1:])


@given(GLOBS, TEXTS)
def test_a_glob_matches_what_it_should(glob: str, text: str) -> None:
    """As the plain definition has it."""
    assert matches(glob, text) is naive(glob, text)


@given(GLOBS, GLOBS, TEXTS)
def test_what_a_glob_covers_it_matches(wide: str, narrow: str, text: str) -> None:
    """A wider glob takes all that the narrower one takes."""
    if glob_covers(wide, narrow) and naive(narrow, text):
        assert naive(wide, text)


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ("*", "a", True),
        ("*", "*", True),
        ("a*", "a*b", True),
        ("a*", "ab", True),
        ("ab", "a*", False),
        ("a*b", "a*", False),
        ("a.c", "abc", False),
    ],
)
def test_what_covers_what(wide: str, narrow: str, *, covered: bool) -> None:
    """Dots and the like are characters."""
    assert glob_covers(wide, narrow) is covered


def test_a_star_takes_line_breaks() -> None:
    """A message of several lines is one text."""
    assert matches("*daily*", "You have exceeded\nyour daily quota.\n")

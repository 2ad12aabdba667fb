"""Globs: text in which `*` stands for any characters, none included."""

from __future__ import annotations

import re
from typing import Final

_ANYTHING: Final = "\x00"
"""Stands for what a `*` of the narrower glob may be: only a `*` of the wider one takes it."""


def glob_pattern(glob: str) -> str:
    """The glob as a regular expression, for `fullmatch` with DOTALL."""
    # Each part is taken where it is first found, for good: no value makes the search go back and forth.
    first, *middle = glob.split("*")
    if not middle:
        return re.escape(first)
    last = middle.pop()
    return re.escape(first) + "".join(f"(?>.*?{re.escape(it)})" for it in middle) + ".*" + re.escape(last)


def glob_covers(wide: str, narrow: str) -> bool:
    """Whether `wide` matches all that `narrow` matches."""
    return re.fullmatch(glob_pattern(wide), narrow.replace("*", _ANYTHING), re.DOTALL) is not None

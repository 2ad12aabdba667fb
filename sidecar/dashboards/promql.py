"""Pieces of PromQL."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_SPECIAL: Final = re.compile(r"[.+*?()\[\]{}|^$\\]")
"""To RE2. `re.escape` would escape a hyphen too, which a name may have."""
_ESCAPED: Final = r"\\\g<0>"


def one_of(label: str, values: Iterable[str]) -> str:
    """A matcher for any of `values`. RE2 is fully anchored in Prometheus."""
    names = list(values)
    if len(names) == 1:
        return f"{label}={quoted(names[0])}"
    return f"{label}=~{quoted('|'.join(_SPECIAL.sub(_ESCAPED, name) for name in names))}"


def quoted(text: str) -> str:
    """A string of PromQL."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def seconds(value: float) -> str:
    """As text for people and for PromQL alike: `2.4`, `24`."""
    return f"{value:g}"

"""JSON values as they are written in YAML.

All other values of the configuration get their type from the schema. Where any JSON value may stand,
YAML's own rules decide (YAML 1.2, 10.2.1.2): what is quoted is text, and a plain scalar is null, a
boolean or a number where it is spelled like one.
"""

from __future__ import annotations

import re
from typing import Any, Final

NULLS: Final = frozenset({"null", "Null", "NULL", "~"})
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+")
_NUMBER: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_LONGEST: Final = 400
"""Digits of a number: beyond that it is text."""


class Quoted(str):
    """Text that stands in quotes, or in a block."""

    __slots__ = ()


def json_value(written: Any) -> Any:
    """`written` with all plain scalars in it as what they are."""
    if isinstance(written, dict):
        return {str(key): json_value(value) for key, value in written.items()}
    if isinstance(written, (list, tuple)):
        return [json_value(item) for item in written]
    if not isinstance(written, str):
        return written
    if not isinstance(written, Quoted):
        if written in NULLS:
            return None
        if written in _BOOLEANS:
            return _BOOLEANS[written]
        if len(written) <= _LONGEST and _NUMBER.fullmatch(written):
            return int(written) if _INTEGER.fullmatch(written) else float(written)
    return str(written)

"""JSON lines that always come out."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

_OPTIONS = orjson.OPT_APPEND_NEWLINE


def dump_line(members: Mapping[str, object]) -> bytes:
    """`members` as one line of JSON; what JSON cannot hold is replaced, never an error."""
    try:
        return orjson.dumps(members, option=_OPTIONS, default=repr)
    except TypeError:  # a lone surrogate, which is no UTF-8, or nesting without end
        return orjson.dumps({_text(key): _plain(value) for key, value in members.items()}, option=_OPTIONS)


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | None) else _text(value)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "replace").decode()

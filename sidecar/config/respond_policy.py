"""The model of `respond`, an answer of the sidecar's own, and the verdicts that a ladder may be for.

Attribute names are the YAML keys.
"""

from __future__ import annotations

import json
import re
import warnings
from typing import Annotated, Any, Final, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from sidecar.config.base import Model, setting
from sidecar.config.json_value import json_value
from sidecar.config.patterns import TOKEN
from sidecar.config.problems import suggestion
from sidecar.config.units import answer_status, wrong

OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "sidecar-degraded",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)
"""Fields that the sidecar writes itself."""


def _lines(value: object) -> object:
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, dict):
        return value
    lines: dict[str, str] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            raise wrong('"{given}" is not the name of a header', name)
        if name.lower() in {known.lower() for known in lines}:
            raise wrong('"{given}" is there twice, names of headers do not tell cases apart', name)
        if name.lower() in OURS:
            raise wrong('"{given}" is written by the sidecar itself', name, "remove it")
        if not isinstance(text, str):
            raise wrong('the value of "{given}" is not text', name)
        if not re.fullmatch(r"[\t\x20-\x7e]*", text):
            raise wrong('the value of "{given}" has characters that a header cannot have', name)
        lines[name] = text.strip()
    return tuple(lines.items())


HeaderLines = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_lines),
    PlainSerializer(dict, return_type=dict[str, str]),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "number"]}}),
]
"""Names as they are written, each with its value."""


def _document(value: object) -> str:
    """One spelling of a JSON value: without white space, members in their order."""
    if isinstance(value, str):
        try:
            read = json.loads(value, parse_constant=_refused)
        except ValueError as error:
            where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise wrong(f"not valid JSON{where}", value, "write a mapping, or JSON as text") from None
    else:
        read = json_value(value)
    try:
        written = json.dumps(read, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        written.encode()
    except (ValueError, TypeError):
        raise wrong("not a JSON value", "", "no number beyond all bounds, no half of a character") from None
    return written


def _refused(name: str) -> NoReturn:
    raise ValueError(name)


JsonDocument = Annotated[
    str,
    BeforeValidator(_document),
    PlainSerializer(json.loads, return_type=Any),
    WithJsonSchema({"description": "JSON, as a mapping or a list, or as text."}),
]
"""JSON text."""

AnswerStatus = Annotated[
    int,
    BeforeValidator(answer_status),
    WithJsonSchema({"type": "integer", "minimum": 200, "maximum": 599}),
]


def _falling(value: str) -> str:
    if value in ("ok", "negative", "client"):
        raise wrong('"{given}" never falls back: it is an answer', value, f"one of {', '.join(FALLING)}")
    if value not in FALLING:
        raise wrong('"{given}" is not known', value, suggestion(value, FALLING))
    return value


FALLING: Final = ("transient", "rate_limited", "quota", "auth")
"""Verdicts that a fallback may stand in for."""
FallingVerdicts = Annotated[
    tuple[Annotated[str, AfterValidator(_falling), WithJsonSchema({"enum": list(FALLING)})], ...],
    Field(min_length=1),
]


with warnings.catch_warnings():
    # BaseModel has a method `json`, deprecated since pydantic 2; the YAML key has that name.
    warnings.filterwarnings("ignore", message='Field name "json"')

    class Respond(Model):
        """An answer of the sidecar's own; in strings `{name}` is a variable of the route's path,
        `{query.name}` a parameter of the query.
        """

        status: AnswerStatus = setting(200, "Status of the answer.", 503)
        headers: HeaderLines = setting(
            (), "Header lines. Content-Type is known from `json` or `text`.", {"Retry-After": "10"}
        )
        json: JsonDocument | None = setting(  # type: ignore[assignment]
            None, "Body, as a mapping or a list, or as JSON text.", {"status": "OK", "id": "{id}"}
        )
        text: str | None = setting(None, "Body, as text.", "{id} is not known at the moment.")

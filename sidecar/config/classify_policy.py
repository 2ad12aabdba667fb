"""The models of `classify`: rules that give an answer its verdict. Attribute names are the YAML keys."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from sidecar.config.base import Model, required, setting
from sidecar.config.json_value import json_value
from sidecar.config.patterns import HeaderGlobs, Name
from sidecar.config.units import wrong
from sidecar.decisions.json_match import All, OneOf, parse_path, plain

Word = Literal["ok", "negative", "transient", "rate_limited", "quota", "auth", "client"]
"""See `decisions.verdict.Verdict`."""
_STATUS: Final = re.compile(r"[1-5](?:[0-9]{2}|xx)")
_VALUE: Final = "text, a number, true, false or null"


def _statuses(value: object) -> object:
    given = value if isinstance(value, (list, tuple)) else [value]
    found: dict[str, None] = {}
    problems: list[InitErrorDetails] = []
    for index, item in enumerate(given):
        text = str(item)
        if _STATUS.fullmatch(text):
            found[text] = None
            continue
        mend = "write for example 429, or 5xx for all that begin with a 5"
        error = wrong('"{given}" is not a status', text, mend)
        problems.append({"type": error, "loc": (index,) if given is value else (), "input": item})
    if problems:
        raise ValidationError.from_exception_data("status", problems)
    return tuple(found)


def _conditions(value: object) -> object:
    if isinstance(value, All):
        return value
    if value == ():
        return All(())
    problems: list[InitErrorDetails] = []
    made = _all(json_value(value), (), problems)
    if problems:
        raise ValidationError.from_exception_data("json", problems)
    return made


def _all(value: Any, at: tuple[str | int, ...], problems: list[InitErrorDetails]) -> All | None:
    def problem(error: PydanticCustomError, *below: str | int) -> None:
        problems.append({"type": error, "loc": (*at, *below), "input": value})

    def empty(kind: str, *below: str | int) -> None:
        context = {"field_type": kind, "min_length": 1, "actual_length": 0}
        problems.append({"type": "too_short", "loc": (*at, *below), "input": value, "ctx": context})

    if not isinstance(value, dict):
        problem(wrong('"{given}" is no mapping of paths to values', value, "write for example {status: OK}"))
        return None
    if not value:
        empty("Mapping")
        return None
    conditions: list[tuple[str, OneOf | All]] = []
    for path, wanted in value.items():
        try:
            parse_path(path)
        except ValueError as error:
            text = f'"{path}" is not a path: {error}'  # a key: no secret
            problem(wrong(text, "", "write for example error.code or rows[0].status"), path)
            continue
        if isinstance(wanted, dict):
            inner = _all(wanted, (*at, path), problems)
            if inner is not None:
                conditions.append((path, inner))
            continue
        values = wanted if isinstance(wanted, list) else [wanted]
        for index, item in enumerate(values):
            if isinstance(item, (dict, list)):
                problem(wrong(f"a list holds values: {_VALUE}", "", "write a rule for each"), path, index)
        if not values:
            empty("List", path)
        conditions.append((path, OneOf(tuple(values))))
    return All(tuple(conditions))


Statuses = Annotated[
    tuple[str, ...],
    BeforeValidator(_statuses),
    PlainSerializer(
        lambda statuses: [int(word) if word.isdigit() else word for word in statuses],
        return_type=list[int | str],
    ),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": "^[1-5]([0-9][0-9]|xx)$"},
                {"type": "integer", "minimum": 100, "maximum": 599},
                {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1},
            ]
        }
    ),
]
Conditions = Annotated[
    All,
    BeforeValidator(_conditions),
    PlainSerializer(plain, return_type=dict[str, Any]),
    WithJsonSchema({"type": "object", "minProperties": 1}),
]

with warnings.catch_warnings():
    # BaseModel has a method `json`, deprecated since pydantic 2; the YAML key has that name.
    warnings.filterwarnings("ignore", message='Field name "json"')

    class ClassifyRule(Model):
        """A verdict, and the answers that it is for: those that fit all that is said here."""

        status: Statuses = setting(
            (), "One status or a list of them; `5xx` is all that begin with a 5.", 429, ["404", "5xx"]
        )
        header: HeaderGlobs = setting(
            (),
            "Headers that must be there, each with its value; `*` matches any characters.",
            {"x-ratelimit-remaining": "0"},
        )
        json: Conditions = setting(  # type: ignore[assignment]
            (),
            "Paths in the JSON body, each with its value or a list of them. See verdicts.md.",
            {"error.code": ["insufficient_quota", "billing_hard_limit_reached"]},
        )
        verdict: Word = required("What the answer is taken for.", "rate_limited")
        degraded: Name | None = setting(
            None,
            "Name of what the answer was made without: `Sidecar-Degraded` says so, it is not stored, and a "
            "stale answer that may stand in for an error does.",
            "google-maps",
        )


RuleList = Annotated[tuple[ClassifyRule, ...], Field(min_length=1)]

"""The model of `fault`: failures that are injected on purpose. Attribute names are the YAML keys."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from sidecar.config.base import Model, required, setting
from sidecar.config.respond_policy import Respond
from sidecar.config.units import (
    Count,
    Delay,
    PositiveShare,
    Size,
    Switch,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    wrong,
)

_MEND: Final = "write a duration such as 10m, or a time such as 2030-01-31T12:00:00Z"


class Expiry(NamedTuple):
    """When a fault ends: so long after it was activated, or at a time."""

    after: float | None = None
    """Seconds."""
    at: float | None = None
    """Unix seconds."""

    def __str__(self) -> str:
        if self.after is not None:
            return format_duration(self.after)
        return datetime.fromtimestamp(self.at or 0.0, UTC).isoformat().replace("+00:00", "Z")


def _expiry(value: object) -> Expiry:
    if isinstance(value, Expiry):
        return value
    if isinstance(value, str) and "-" in value:
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise wrong('"{given}" is neither a duration nor a time', value, _MEND) from None
        if at.tzinfo is None:
            midnight = "" if "T" in value else "T00:00:00"
            raise wrong('"{given}" has no time zone', value, f"write {value}{midnight}Z for UTC")
        return Expiry(at=at.timestamp())
    try:
        after = parse_duration(value)
    except PydanticCustomError:
        raise wrong('"{given}" is neither a duration nor a time', value, _MEND) from None
    if not after:
        raise wrong('"{given}" must be longer than zero', value)
    return Expiry(after=after)


def _byte_rate(value: object) -> int:
    """Bytes per second."""
    if isinstance(value, int) and not isinstance(value, bool):
        return parse_size(value)
    size, slash, unit = str(value).rpartition("/")
    if not slash or unit.strip() != "s":
        mend = "write for example 100B/s or 16KiB/s"
        raise wrong('"{given}" is not a number of bytes per second', value, mend)
    try:
        return parse_size(size.strip())
    except PydanticCustomError as error:
        mend = str((error.context or {}).get("mend", ""))
        number = re.match(r"[0-9.]+", size.strip())
        near = re.search(r"did you mean ([^?]+)\?", mend)
        shown = near[1] if near else f"{number[0]}B" if number else "100B"
        raise wrong(
            '"{given}" is not a number of bytes per second', value, f"write for example {shown}/s"
        ) from None


def _span(value: object) -> object:
    """A plain duration is a range of one."""
    if value is None or isinstance(value, (dict, Model)):
        return value
    seconds = parse_duration(value)
    if not seconds:
        raise wrong('"{given}" must be longer than zero', value)
    return {"min": seconds, "max": seconds}


Expires = Annotated[
    Expiry,
    PlainValidator(_expiry),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "description": "A duration, or a time by RFC 3339."}),
]
ByteRate = Annotated[
    int,
    BeforeValidator(_byte_rate),
    PlainSerializer(lambda rate: f"{format_size(rate)}/s", return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*(B|KiB|MiB|GiB|KB|MB|GB)/s$"}),
]
"""Bytes per second, at least one."""


class DelayRange(Model):
    """A time that is drawn anew for each attempt, all times between the two alike."""

    min: Delay = setting("0s", "Shortest.", "100ms")
    max: Delay = required("Longest.", "2s")


class Fault(Model):
    """Failures injected into attempts, below all other layers: these take them for the upstream's own."""

    percent: PositiveShare = setting("100%", "Share of the attempts that are hit, by chance.", "20%")
    every: Count | None = setting(None, "Only each so many-th attempt is hit.", 3)
    first: Count | None = setting(None, "Only so many attempts are hit, the first ones.", 2)
    delay: Annotated[DelayRange | None, BeforeValidator(_span)] = setting(
        None,
        "Wait before anything else is done: a duration, or `{min, max}`.",
        "500ms",
        {"min": "100ms", "max": "2s"},
    )
    respond: Respond | None = setting(
        None,
        "The upstream is not asked, and answers so: an error, or a good status with an error in its body.",
        {"status": 200, "json": {"status": "OVER_QUERY_LIMIT"}},
    )
    reset: Switch = setting(False, "The connection is reset before the response head.", True)
    truncate: Size | None = setting(
        None, "The body is cut after so many bytes, and the connection ends.", "100B"
    )
    bandwidth: ByteRate | None = setting(None, "The body drips: so many bytes a second come.", "100B/s")
    expires: Expires | None = setting(
        None,
        "When it ends by itself: so long after the start of the sidecar, or after it was set; or at a time.",
        "10m",
        "2030-01-31T12:00:00Z",
    )

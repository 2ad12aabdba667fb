"""Values with a unit: durations, sizes, rates, percentages; and counts and switches.

Each is an annotated type: it takes text as written in YAML, and plain numbers from Python code
(seconds, bytes, per second, a share of 1). It dumps to JSON as a user would write it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

_SECONDS: Final[dict[str, Decimal]] = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_BYTES: Final[dict[str, int]] = {
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
}
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_QUANTITY: Final = re.compile(rf"({_NUMBER})\s*([A-Za-zµ%/]*)")
_LONGEST: Final = 3650 * 86400
_LARGEST: Final = 1 << 50


def wrong(text: str, given: object, mend: str = "") -> PydanticCustomError:
    """A finding about a value. `{given}` in `text` is the value: the loader hides it when it is secret.

    Nothing else in `text` may be taken from the value; `mend` may, and is dropped for a secret.
    """
    shown = str(given)
    written = f"{text} ({mend})" if mend else text
    return PydanticCustomError(
        "sidecar",
        "{message}",
        {
            "message": written.replace("{given}", shown),
            "text": text,
            "given": shown,
            "mend": mend,
        },
    )


def _quantity(value: object) -> tuple[str, str] | None:
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    return (match[1], match[2]) if match else None


def parse_duration(value: object) -> float:
    """Seconds. Raises PydanticCustomError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        parts = _quantity(value)
        if parts is None:
            raise wrong('"{given}" is not a duration', value, "write for example 250ms, 10s, 5m, 1h or 30d")
        number, unit = parts
        if not unit and Decimal(number):
            raise wrong('"{given}" has no unit', value, f"write {number}s, or {number}ms")
        factor = _SECONDS.get(unit or "s")
        if factor is None:
            raise wrong('"{given}" has an unknown unit', value, "durations end in ms, s, m, h or d")
        seconds = float(Decimal(number) * factor)
    if not 0 <= seconds <= _LONGEST:
        raise wrong('"{given}" is not a duration of 0 to 3650 days', value)
    return seconds


def parse_positive_duration(value: object) -> float:
    """As `parse_duration`, and more than zero."""
    seconds = parse_duration(value)
    if not seconds:
        raise wrong('"{given}" must be longer than zero', value)
    return seconds


def _plain(number: float | Decimal) -> str:
    text = f"{Decimal(str(number)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_duration(seconds: float) -> str:
    """As a user writes it: `90s`, `5m`, `1.5s`, `250ms`."""
    exact = Decimal(f"{seconds:.9f}")
    if 0 < exact < 1:
        return f"{_plain(exact * 1000)}ms"
    for unit in ("d", "h", "m"):
        factor = _SECONDS[unit]
        if exact >= factor and exact % factor == 0:
            return f"{_plain(exact / factor)}{unit}"
    return f"{_plain(exact)}s"


def parse_size(value: object) -> int:
    """Bytes: KiB, MiB and GiB count by 1024; KB, MB and GB by 1000. Raises PydanticCustomError."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = Decimal(value)
    else:
        parts = _quantity(value)
        if parts is None:
            raise wrong('"{given}" is not a size', value, "write for example 64KiB, 1MiB or 50MB")
        number, unit = parts
        if not unit:
            raise wrong('"{given}" has no unit', value, f"write {number}B, {number}KiB or {number}MiB")
        factor = _BYTES.get(unit)
        if factor is None:
            known = {name.lower(): name for name in _BYTES} | {"k": "KiB", "m": "MiB", "g": "GiB"}
            near = known.get(unit.lower())
            mend = f"did you mean {number}{near}?" if near else "sizes end in B, KiB, MiB, GiB, KB, MB or GB"
            raise wrong('"{given}" has an unknown unit', value, mend)
        size = Decimal(number) * factor
    if size != int(size):
        raise wrong('"{given}" is not a whole number of bytes', value)
    if not 1 <= size <= _LARGEST:
        raise wrong('"{given}" is not a size of 1 byte to 1 PiB', value)
    return int(size)


def format_size(size: int) -> str:
    for unit in ("GiB", "MiB", "KiB", "GB", "MB", "KB"):
        if size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def parse_rate(value: object) -> float:
    """Events per second. Raises PydanticCustomError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        rate = float(value)
    else:
        parts = _quantity(value)
        if parts is None:
            raise wrong('"{given}" is not a rate', value, "write for example 50/s or 100/m")
        number, unit = parts
        if not unit:
            raise wrong('"{given}" has no unit', value, f"write {number}/s, or {number}/m")
        factor = _SECONDS.get(unit[1:]) if unit.startswith("/") and unit != "/ms" else None
        if factor is None:
            raise wrong('"{given}" has an unknown unit', value, "rates end in /s, /m, /h or /d")
        rate = float(Decimal(number) / factor)
    if not 0 < rate < float("inf"):
        raise wrong('"{given}" must be more than zero', value)
    return rate


def format_rate(rate: float) -> str:
    """In the shortest period that gives a whole number; else per second."""
    for unit in ("s", "m", "h", "d"):
        count = rate * float(_SECONDS[unit])
        if round(count) and abs(count - round(count)) < 1e-9 * count:
            return f"{round(count)}/{unit}"
    return f"{_plain(rate)}/s"


def parse_share(value: object) -> float:
    """A share of 1: `20%`, or a plain number of 0 to 1. Raises PydanticCustomError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        share = float(value)
    else:
        parts = _quantity(value)
        if parts is None or parts[1] not in ("", "%"):
            raise wrong('"{given}" is not a percentage', value, "write for example 20%")
        number, unit = parts
        share = float(Decimal(number) / 100 if unit else Decimal(number))
        if not unit and share > 1:
            raise wrong('"{given}" is more than 100%', value, f"write {number}%")
    if not 0 <= share <= 1:
        raise wrong('"{given}" is not within 0% and 100%', value)
    return share


def _positive_share(value: object) -> float:
    share = parse_share(value)
    if not share:
        raise wrong('"{given}" must be more than 0%', value)
    return share


def format_share(share: float) -> str:
    return f"{_plain(Decimal(str(share)) * 100)}%"


def _whole(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise wrong('"{given}" is not a whole number', value)
        if isinstance(value, str) and not re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
            raise wrong('"{given}" is not a whole number', value, f"write for example {max(least, 3)}")
        number = int(value)
        if number < least:
            raise wrong(f'"{{given}}" is less than {least}', value)
        if number > most:
            raise wrong(f'"{{given}}" is more than {most}', value)
        return number

    return parse


answer_status = _whole(200, 599)
"""A final status (RFC 9110, 15). Raises PydanticCustomError."""


def _amount(value: object) -> float:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(_NUMBER, text):
        raise wrong('"{given}" is not a number of 0 or more', value, "write for example 1 or 0.2")
    return float(text)


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return value == "true"
    mends = {"on": "true", "yes": "true", "off": "false", "no": "false"}
    mend = mends.get(value.lower()) if isinstance(value, str) else None
    raise wrong('"{given}" is neither true nor false', value, f"write {mend}" if mend else "")


_DURATION_SCHEMA: Final = {
    "type": "string",
    "pattern": rf"^({_NUMBER}\s*(ms|s|m|h|d)|0)$",
    "description": "A duration: a number with ms, s, m, h or d.",
    "examples": ["250ms", "10s", "5m", "1h", "30d"],
}
_SHARE_SCHEMA: Final = {
    "anyOf": [
        {"type": "string", "pattern": rf"^{_NUMBER}\s*%$"},
        {"type": "number", "minimum": 0, "maximum": 1},
    ],
    "description": "A percentage, or a number of 0 to 1.",
    "examples": ["20%"],
}

Duration = Annotated[
    float,
    BeforeValidator(parse_positive_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_DURATION_SCHEMA),
]
"""Seconds, more than zero."""

Delay = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(_DURATION_SCHEMA),
]
"""Seconds, zero included."""

Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^{_NUMBER}\s*(B|KiB|MiB|GiB|KB|MB|GB)$",
            "description": "A size: KiB, MiB and GiB count by 1024; KB, MB and GB by 1000.",
            "examples": ["64KiB", "1MiB", "50MB"],
        }
    ),
]
"""Bytes, at least one."""

Rate = Annotated[
    float,
    BeforeValidator(parse_rate),
    PlainSerializer(format_rate, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": rf"^{_NUMBER}\s*/(s|m|h|d)$",
            "description": "A rate: so many per second, minute, hour or day.",
            "examples": ["50/s", "100/m"],
        }
    ),
]
"""Per second, more than zero."""

Share = Annotated[
    float,
    BeforeValidator(parse_share),
    PlainSerializer(format_share, return_type=str),
    WithJsonSchema(_SHARE_SCHEMA),
]
"""A share of 1, zero included."""

PositiveShare = Annotated[
    float,
    BeforeValidator(_positive_share),
    PlainSerializer(format_share, return_type=str),
    WithJsonSchema(_SHARE_SCHEMA),
]
"""A share of 1, more than zero."""

Count = Annotated[
    int,
    BeforeValidator(_whole(1, 1_000_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 1}),
]
Whole = Annotated[
    int,
    BeforeValidator(_whole(0, 1_000_000_000)),
    WithJsonSchema({"type": "integer", "minimum": 0}),
]
"""A count, zero included."""
Attempts = Annotated[
    int,
    BeforeValidator(_whole(1, 100)),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 100}),
]
Status = Annotated[
    int,
    BeforeValidator(_whole(100, 599)),
    WithJsonSchema({"type": "integer", "minimum": 100, "maximum": 599}),
]
Amount = Annotated[
    float,
    BeforeValidator(_amount),
    PlainSerializer(_plain, return_type=str),
    WithJsonSchema({"type": "number", "minimum": 0}),
]
"""A plain number, zero included."""

Switch = Annotated[bool, BeforeValidator(_switch), WithJsonSchema({"type": "boolean"})]

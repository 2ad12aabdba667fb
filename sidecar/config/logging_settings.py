"""The models of `logging` in sidecar.yaml. Attribute names are the YAML keys."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from sidecar.config.base import Model, section, setting
from sidecar.config.patterns import TOKEN
from sidecar.config.units import Count, Duration, PositiveShare, Size, Switch, wrong

RESERVED: Final = frozenset(
    {
        *("timestamp", "level", "logger", "message", "component", "operation", "client", "method", "path"),
        *("route", "status", "upstream", "attempts", "verdict", "breaker", "cache", "error", "rung", "end"),
        *("request_id", "correlation_id", "trace_id", "duration_ms", "first_byte_ms", "upstream_ms", "trail"),
        *("cache_key", "ttl", "bytes_in", "bytes_out"),
    }
)
"""Members that each line of the access log has by itself."""


def _fields(value: object) -> object:
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        raise wrong('"{given}" is not a mapping', value, "write for example {user_id: X-User-ID}")
    for name, header in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
            raise wrong('"{given}" is no name of a member', name, "lower-case letters, digits and _")
        if name in RESERVED:
            raise wrong('each line has a member "{given}" already', name, "choose another name")
        if not isinstance(header, str) or not TOKEN.fullmatch(header):
            raise wrong('what "{given}" is taken from is not the name of a header', name, "write X-User-ID")
    return tuple(value.items())


Fields = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_fields),
    PlainSerializer(dict, return_type=dict[str, str]),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]
"""Member, header."""


class Rotate(Model):
    """When a new file is begun, and how many are kept."""

    size: Size = setting("500MiB", "Size that a file does not grow beyond.", "100MiB")
    keep: Count = setting(10, "Files kept besides the current one: `FILE.1` is the newest.", 5)


class Logging(Model):
    """Logs, on standard output or in a file."""

    format: Literal["json", "console"] = setting(
        "json", "One JSON object a line, or text for people.", "console"
    )
    level: Literal["debug", "info", "warning", "error"] = setting(
        "info",
        "Of what the sidecar says of itself, what is less severe is not logged; requests are the affair of "
        "`access`. The variable LOG_LEVEL goes before this.",
        "debug",
    )
    access: Switch = setting(True, "Whether each request is logged.", False)
    sample: PositiveShare = setting(
        "100%",
        "Share of the requests that went well which are logged, by chance. Errors, what was slow, repeated, "
        "degraded or answered by a fallback are logged always.",
        "10%",
    )
    slow: Duration = setting("1s", "How long a request takes that `sample` leaves out in no case.", "500ms")
    fields: Fields = setting(
        (),
        "More members for each request: their names, and the request headers they are taken from. Of a "
        "header whose name speaks of a credential or a session only a digest is logged.",
        {"user_id": "X-User-ID", "session_id": "X-Session-ID"},
    )
    file: str | None = setting(
        None,
        "File that is written instead of standard output, relative to sidecar.yaml. One that is moved away "
        "is begun anew, as logrotate wants it.",
        "/var/log/sidecar/sidecar.log",
    )
    rotate: Rotate | None = section(Rotate, "When a new `file` is begun; `off`: others see to it.")

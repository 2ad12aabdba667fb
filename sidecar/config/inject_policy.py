"""Models of `inject`, `app_keeps` and `depends_on`. Attribute names are the YAML keys."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, PlainSerializer, SecretStr, WithJsonSchema

from sidecar.config.base import Model, required, setting
from sidecar.config.patterns import TOKEN, Name
from sidecar.config.problems import SECRET
from sidecar.config.units import Duration, wrong

OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-sidecar-debug",
        "x-sidecar-retry",
    }
)
"""Fields that are of the connection, or that the sidecar writes itself."""


def _parameters(value: object) -> object:
    if not isinstance(value, dict):
        return value if isinstance(value, tuple) else ()
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\x21-\x7e]+", name) or set(name) & set("&=#%;+?"):
            raise wrong('"{given}" is not the name of a parameter', name, "write it as it is, not encoded")
        if not isinstance(text, str):
            raise wrong('the value of "{given}" is not text', name)
    return tuple((name, SecretStr(text)) for name, text in value.items())


def _headers(value: object) -> object:
    if not isinstance(value, dict):
        return value if isinstance(value, tuple) else ()
    lines: dict[str, SecretStr] = {}
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
        lines[name] = SecretStr(text.strip())
    return tuple(lines.items())


_hidden = PlainSerializer(lambda pairs: {name: SECRET for name, _ in pairs}, return_type=dict[str, str])
_SCHEMA: Final = WithJsonSchema({"type": "object", "additionalProperties": {"type": ["string", "number"]}})

Parameters = Annotated[tuple[tuple[str, SecretStr], ...], BeforeValidator(_parameters), _hidden, _SCHEMA]
Headers = Annotated[tuple[tuple[str, SecretStr], ...], BeforeValidator(_headers), _hidden, _SCHEMA]


class Inject(Model):
    """Secrets for an upstream. An empty value puts nothing, and what the app sent stays."""

    query: Parameters = setting(
        (),
        "Parameters of the query.",
        {"key": "${GOOGLE_MAPS_API_KEY}"},
        {"key": "${file:/run/secrets/maps}"},
    )
    headers: Headers = setting((), "Header lines.", {"authorization": "Bearer ${OPENAI_API_KEY}"})

    @property
    def any(self) -> bool:
        """Whether there is something to put."""
        return any(value.get_secret_value() for _, value in (*self.query, *self.headers))


class AppKeeps(Model):
    """What the app keeps in a memory of its own."""

    query: Name = required("The parameter of a call's query by which the app keeps the answer.", "address")
    ttl: Duration = required("For how long.", "1d")

    @property
    def parameter(self) -> bytes:
        return self.query.encode()


def _providers(value: object) -> object:
    return (value,) if isinstance(value, str) and value != "all" else value


Providers = Annotated[
    Literal["all"] | tuple[Name, ...],
    BeforeValidator(_providers),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    ),
]

"""The models of `tracing` and `sentry` in sidecar.yaml. Attribute names are the YAML keys."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr, WithJsonSchema

from sidecar.config.base import Model, setting
from sidecar.config.inject_policy import Headers
from sidecar.config.units import Share, wrong

TRACES_PATH = "/v1/traces"
"""Where collectors take traces over HTTP (OTLP 1.0, "OTLP/HTTP Request")."""


def _http_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _collector(value: str) -> str:
    if not _http_url(value) or re.search(r"[^\x21-\x7e]", value):
        raise wrong(
            '"{given}" is not the URL of a collector', value, "write for example http://127.0.0.1:4318"
        )
    parts = urlsplit(value)
    if parts.username is not None or parts.query or parts.fragment:
        raise wrong(
            "it must be a URL without user, query and fragment", value, "put secrets in tracing.headers"
        )
    return value if parts.path.strip("/") else value.rstrip("/") + TRACES_PATH


def _attributes(value: object) -> object:
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        raise wrong('"{given}" is not a mapping', value, "write for example {k8s.namespace.name: shop}")
    for name, text in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.\-]*", name):
            raise wrong('"{given}" is not the name of an attribute', name)
        if not isinstance(text, str):
            raise wrong('the value of "{given}" is not text', name)
    return tuple(value.items())


def _service(value: str) -> str:
    if not value.strip():
        raise wrong("a service has a name", value, "write for example nextvision-sidecar")
    return value


def _dsn(value: object) -> object:
    if value == "" or not isinstance(value, str):
        return value or None
    parts = urlsplit(value)
    if not _http_url(value) or not parts.username or not re.search(r"/\d+$", parts.path):
        raise wrong("not the DSN of a project", "", "Sentry shows it as https://KEY@HOST/NUMBER")
    return value


CollectorUrl = Annotated[
    str, AfterValidator(_collector), WithJsonSchema({"type": "string", "pattern": "^https?://"})
]
Attributes = Annotated[
    tuple[tuple[str, str], ...],
    BeforeValidator(_attributes),
    PlainSerializer(dict, return_type=dict[str, str]),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]
Dsn = Annotated[
    SecretStr | None,
    BeforeValidator(_dsn),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]


class Tracing(Model):
    """Traces: a span for each request and for each attempt, exported over OTLP/HTTP."""

    otlp: CollectorUrl | None = setting(
        None,
        "URL of an OpenTelemetry collector that takes OTLP over HTTP (protobuf); without a path it is asked "
        "at /v1/traces. Takes the extra `otel`. Absent: no spans, and `traceparent` is passed on as ever.",
        "http://127.0.0.1:4318",
    )
    ratio: Share = setting(
        "10%",
        "Share of the traces that begin here which are sampled, by chance. Those that begin elsewhere are "
        "sampled as the flag in their `traceparent` says.",
        "100%",
    )
    service: Annotated[str, AfterValidator(_service)] = setting(
        "nextvision-sidecar", "`service.name` of the spans.", "shop-sidecar"
    )
    headers: Headers = setting(
        (), "Header lines for the collector, a token perhaps.", {"authorization": "Bearer ${OTLP_TOKEN}"}
    )
    attributes: Attributes = setting((), "More attributes of the resource.", {"k8s.namespace.name": "shop"})


class Sentry(Model):
    """Unexpected errors of the sidecar itself, reported to Sentry."""

    dsn: Dsn = setting(
        None,
        "DSN of a project. Takes the extra `sentry`. Only faults of the sidecar's own are sent: no errors of "
        "upstreams, no bodies, no headers, no values of variables. Absent or empty: nothing is sent.",
        "${SENTRY_DSN:-}",
    )

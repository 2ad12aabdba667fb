"""The models of `metrics` and `expose` in sidecar.yaml. Attribute names are the YAML keys."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from sidecar.config.base import Model, setting
from sidecar.config.units import Switch, format_duration, parse_positive_duration, wrong
from sidecar.decisions.buckets import PROFILES

MOST_BOUNDS: Final = 40
"""Each bucket is a series of each route and upstream."""

EXPOSABLE: Final = (
    "/health",
    "/health/detailed",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/monitoring/performance",
    "/monitoring/system",
)
"""Paths of the admin listener that ingress may answer too: they act on nothing and tell no setting."""


def _namespace(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise wrong('"{given}" cannot begin the name of a metric', value, "letters, digits and _")
    return value


Namespace = Annotated[
    str, AfterValidator(_namespace), WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"})
]


def _buckets(value: object) -> tuple[float, ...]:
    known = ", ".join(PROFILES)
    if isinstance(value, str):
        if value not in PROFILES:
            raise wrong(
                '"{given}" is no profile of buckets', value, f"one of {known}, or a list such as [100ms, 1s]"
            )
        return PROFILES[value]
    if not isinstance(value, (list, tuple)) or not value:
        raise wrong('"{given}" is no list of durations', value, f"write one of {known}, or [100ms, 1s, 10s]")
    bounds = tuple(parse_positive_duration(bound) for bound in value)
    if any(bound <= below for below, bound in pairwise(bounds)):
        raise wrong('"{given}" does not ascend', value, "write the shortest first, each once")
    if len(bounds) > MOST_BOUNDS:
        raise wrong(f'"{{given}}" has more than {MOST_BOUNDS} bounds', value)
    return bounds


def format_buckets(bounds: tuple[float, ...]) -> str | list[str]:
    for name, profile in PROFILES.items():
        if bounds == profile:
            return name
    return [format_duration(bound) for bound in bounds]


Buckets = Annotated[
    tuple[float, ...],
    BeforeValidator(_buckets),
    PlainSerializer(format_buckets),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MOST_BOUNDS,
                    "items": {"type": "string", "pattern": r"^[0-9]+(?:\.[0-9]+)?\s*(ms|s|m|h|d)$"},
                },
                {"enum": list(PROFILES)},
            ]
        }
    ),
]
"""Upper bounds in seconds, ascending."""


def _exposed(value: str) -> str:
    if value not in EXPOSABLE:
        raise wrong('"{given}" cannot be answered on ingress', value, f"these can: {', '.join(EXPOSABLE)}")
    return value


Exposed = Annotated[
    str, AfterValidator(_exposed), WithJsonSchema({"type": "string", "enum": list(EXPOSABLE)})
]


class Metrics(Model):
    """Prometheus metrics."""

    enabled: Switch = setting(
        True,
        "Whether `/metrics` is served; counting goes on either way. The variable PROMETHEUS_ENABLED goes "
        "before this.",
        False,
    )
    namespace: Namespace = setting("nextvision", "First part of all metric names.", "sidecar")
    buckets: Buckets = setting(
        "standard",
        "Upper bounds of the buckets of durations: `standard` (1 ms to 1 m), `fast` (0.25 ms to 10 s), "
        "`slow` (50 ms to 10 m, for language models), or a list of durations of one's own.",
        "slow",
        ["100ms", "1s", "10s"],
    )

"""The models of a route's `cache`: what a policy adds to RFC 9111. Attribute names are the YAML keys."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from sidecar.config.base import Model, required, section, setting
from sidecar.config.patterns import TOKEN, VARIABLE, Method, Methods
from sidecar.config.units import (
    Delay,
    Duration,
    PositiveShare,
    Size,
    Switch,
    format_duration,
    parse_duration,
    wrong,
)

NEVER_CACHED: Final = frozenset({"CONNECT", "DELETE", "OPTIONS", "PATCH", "PUT", "TRACE"})
"""Their definitions in RFC 9110, 9.3 and RFC 5789, 2 leave an answer nothing to be reused for."""
_LONGEST_TAG: Final = 128


def _cached_method(value: str) -> str:
    if value in NEVER_CACHED:
        raise wrong('answers to "{given}" cannot be cached', value, "GET, HEAD, POST or QUERY")
    return value


def _namespace(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise wrong('"{given}" is not a namespace', value, "letters, digits, - or _; 64 characters at most")
    return value


def _parameter(value: str) -> str:
    if not value or not value.isprintable():
        raise wrong('"{given}" is not the name of a query parameter', value)
    return value


def _dropped(value: str) -> str:
    _parameter(value)
    if "*" in value[:-1]:
        raise wrong('"{given}": * stands at the end only', value, "write for example utm_*")
    return value


def _exact(value: str) -> str:
    _parameter(value)
    if "*" in value:
        raise wrong('"{given}": * is for drop only', value, "write each parameter by its name")
    return value


def _header(value: str) -> str:
    if not TOKEN.fullmatch(value):
        raise wrong('"{given}" is not the name of a header', value)
    return value.lower()


def _periods(value: object) -> object:
    if isinstance(value, tuple):
        value = dict(value)
    if not isinstance(value, dict):
        raise wrong('"{given}" is not a mapping', value, "write for example {departure_time: 5m}")
    periods: dict[str, float] = {}
    for name, written in value.items():
        if not isinstance(name, str) or not name or "*" in name:
            raise wrong('"{given}" is not the name of a query parameter', name)
        try:
            seconds = parse_duration(written)
        except PydanticCustomError:
            raise wrong('the period of "{given}" is not a duration', name, "write for example 5m") from None
        if seconds < 1 or seconds % 1:
            raise wrong(
                'the period of "{given}" is not whole seconds, 1 at least', name, "write for example 5m"
            )
        periods[name] = seconds
    return tuple(sorted(periods.items()))


def _tag(value: str) -> str:
    literal = VARIABLE.sub("", value)
    if not value or len(value) > _LONGEST_TAG or not re.fullmatch(r"[\x21-\x2b\x2d-\x7e]*", literal):
        mend = f"printable ASCII without spaces and commas, {_LONGEST_TAG} characters at most"
        raise wrong('"{given}" is not a tag', value, mend)
    if "{" in literal or "}" in literal:
        raise wrong('"{given}" has a { or } without its other half', value)
    return value


def _warmed(value: str) -> str:
    if not value.startswith("/"):
        raise wrong('"{given}" does not begin with /', value, "a path, with its query if there is one")
    if "#" in value or re.search(r"[^\x21-\x7e]", value):
        raise wrong('"{given}" has characters that a URL cannot have', value, "percent-encode them")
    return value


def _ahead(value: float) -> float:
    if value >= 1:
        raise wrong("it must be less than 100%", value, "write for example 80%")
    return value


CachedMethods = Annotated[
    tuple[Annotated[Method, AfterValidator(_cached_method)], ...],
    *Methods.__metadata__,
]
CacheNamespace = Annotated[
    str,
    AfterValidator(_namespace),
    WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9_-]{1,64}$"}),
]
Dropped = Annotated[str, AfterValidator(_dropped)]
Parameter = Annotated[str, AfterValidator(_exact)]
HeaderName = Annotated[
    str, AfterValidator(_header), WithJsonSchema({"type": "string", "pattern": "^[!#-'*+.^-z|~0-9A-Z-]+$"})
]
Periods = Annotated[
    tuple[tuple[str, float], ...],
    BeforeValidator(_periods),
    PlainSerializer(
        lambda periods: {name: format_duration(period) for name, period in periods},
        return_type=dict[str, str],
    ),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
]
"""Seconds, by parameter."""
Tag = Annotated[str, AfterValidator(_tag)]
WarmUrl = Annotated[str, AfterValidator(_warmed), WithJsonSchema({"type": "string", "pattern": "^/[^#]*$"})]


class QueryKey(Model):
    """How a request's query tells it apart from others."""

    drop: tuple[Dropped, ...] = setting(
        (),
        "Parameters that do not matter; `utm_*` stands for all that begin so. Credentials belong here: "
        "they are in no key then.",
        ["key", "utm_*"],
    )
    fold: tuple[Parameter, ...] = setting(
        (), "Parameters whose case and white space do not matter.", ["address"]
    )
    bucket: Periods = setting(
        (),
        "Numeric parameters, times above all, each with the period that it is rounded down to; `now` is "
        "the clock.",
        {"departure_time": "5m"},
    )
    sort: Switch = setting(
        False, "Whether the order of parameters does not matter; that of equal names always does.", True
    )


class CacheKey(Model):
    """What tells requests apart, besides scheme, host, path and what the answer's Vary names."""

    query: QueryKey = section(QueryKey, "Which of the query counts, and how.")
    headers: tuple[HeaderName, ...] = setting((), "Request headers that count.", ["accept-language"])
    body: Literal["json", "bytes"] | None = setting(
        None,
        "`json`: what a JSON body means counts, not how it is written. `bytes`: its bytes. `off`: its "
        "bytes, but not in a GET or HEAD.",
        "json",
    )


class AdaptiveTtl(Model):
    """Freshness that doubles while a look at the origin finds the same, and halves when it does not."""

    min: Duration = required("It never gets shorter than this.", "1m")
    max: Duration = required("It never gets longer than this.", "1d")


class Cache(Model):
    """Keeps answers, and fetches what many ask for at once a single time."""

    ttl: Duration | None = setting(
        None, "How long an answer is fresh where the origin says nothing on that.", "30m"
    )
    negative_ttl: Duration | None = setting(
        None, "The same for answers with the verdict `negative`; `off`: these are not stored.", "5m"
    )
    stale_while_revalidate: Delay | None = setting(
        None,
        "How long past its freshness an answer is still served at once, while one request fetches the "
        "next; where the origin says nothing on that.",
        "1m",
    )
    stale_if_error: Delay | None = setting(
        None,
        "How long past its freshness an answer is served when the origin fails; where the origin says "
        "nothing on that. `0`: never.",
        "6h",
    )
    probe_interval: Duration | None = setting(
        "5s",
        "While the origin fails, what `stale_if_error` allows is served at once, and in this time one "
        "request asks the origin, in the background; `off`: each request asks first.",
        "1s",
    )
    max_age_total: Duration | None = setting(
        None, "Nothing is kept longer than this, whatever else says.", "30d"
    )
    respect_origin: Switch = setting(
        True,
        "`false`: what the origin says on freshness, and its `no-store`, does not count. `private` does.",
        False,
    )
    methods: CachedMethods = setting(
        ("GET", "HEAD"), "Methods whose answers are cached. What a POST asks is in its body.", ["POST"]
    )
    key: CacheKey = section(CacheKey, "What tells requests apart.")
    tags: tuple[Tag, ...] = setting(
        (),
        "Names for purging. `{name}` is a variable of the route's path.",
        ["candidate:{candidate}"],
    )
    namespace: CacheNamespace | None = setting(
        None,
        "First part of the keys, and what statistics are counted by. Absent: the route's name.",
        "matching",
    )
    max_object: Size = setting("1MiB", "Larger answers are passed on and not stored.", "256KiB")
    adaptive_ttl: AdaptiveTtl | None = setting(
        None, "Lets `ttl` follow how often answers change.", {"min": "1m", "max": "1d"}
    )
    refresh_ahead: Annotated[PositiveShare, AfterValidator(_ahead)] | None = setting(
        None,
        "Share of its freshness after which an answer that is asked for is refreshed, ahead of time.",
        "80%",
    )
    warm: tuple[WarmUrl, ...] = setting(
        (), "Paths, with their queries, that are fetched at the start.", ["/api/v1/jobs?page=1"]
    )
    share_authorized: Switch = setting(
        False,
        "Whether answers to requests with `Authorization` are stored, and shared, without the origin's word. "
        "`authorization` among `key.headers` stores one for each credential instead.",
        True,
    )
    distrust_age: Switch = setting(
        False,
        "Whether an `Age` that is no number, or is repeated, makes an answer stale; RFC 9111 has a cache "
        "ignore it.",
        True,
    )
    terms_ack: Switch | None = setting(
        None,
        "For providers whose terms forbid to store their answers: `false` asks once for all who ask the same "
        "at a time, and stores nothing; `true` says that you have read the terms and may store.",
        True,
    )
    share_private: Switch = setting(
        False, "Whether answers that say `private`, or that set cookies, are shared.", True
    )

"""The models of `retry`. Attribute names are the YAML keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from sidecar.config.base import Model, section, setting
from sidecar.config.patterns import Methods
from sidecar.config.units import (
    Amount,
    Attempts,
    Delay,
    Share,
    Size,
    Status,
    Switch,
    format_duration,
    parse_positive_duration,
    wrong,
)

Strategy = Literal[
    "fixed",
    "exponential",
    "linear",
    "fibonacci",
    "full_jitter",
    "equal_jitter",
    "decorrelated_jitter",
    "adaptive",
    "smart",
]
IDEMPOTENT: Final = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
"""RFC 9110, 9.2.2."""
_PERCENTILE: Final = re.compile(r"p([0-9]{1,2})")
_LOWEST: Final = 50


@dataclass(frozen=True, slots=True)
class Percentile:
    """`p95`: what 95 % of the attempts are shorter than."""

    number: int

    @property
    def share(self) -> float:
        """As a share of 1."""
        return self.number / 100

    def __str__(self) -> str:
        return f"p{self.number}"


def parse_hedge_after(value: object) -> Percentile | float:
    """A percentile, or seconds. Raises PydanticCustomError."""
    if isinstance(value, Percentile):
        return value
    if not isinstance(value, str):
        return parse_positive_duration(value)
    percentile = _PERCENTILE.fullmatch(value.strip())
    if percentile is None:
        if not value.strip()[:1].isdigit():
            text = '"{given}" is neither a percentile nor a duration'
            raise wrong(text, value, "write for example p95 or 300ms")
        return parse_positive_duration(value)
    number = int(percentile[1])
    if number < _LOWEST:
        raise wrong('"{given}" would send most requests twice', value, "write p50 to p99, or a duration")
    return Percentile(number)


def _written(after: Percentile | float) -> str:
    return str(after) if isinstance(after, Percentile) else format_duration(after)


HedgeAfter = Annotated[
    Percentile | float,
    PlainValidator(parse_hedge_after),
    PlainSerializer(_written, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(p[5-9][0-9]|[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d))$",
            "description": "A percentile, p50 to p99, or a duration.",
            "examples": ["p95", "300ms"],
        }
    ),
]


class Backoff(Model):
    """How long to wait before the next attempt."""

    strategy: Strategy = setting(
        "full_jitter",
        "How the delay grows, and where chance comes in. `full_jitter`: a random time up to the "
        "exponential one.",
        "decorrelated_jitter",
    )
    base: Delay = setting("25ms", "Delay that the strategy starts from.", "200ms")
    max: Delay = setting("250ms", "No delay is longer, but for what a Retry-After asks.", "2s")


class RetryOn(Model):
    """What is worth another attempt. A list that is given replaces that list's default."""

    verdicts: tuple[Literal["transient", "rate_limited"], ...] = setting(
        ("transient", "rate_limited"),
        "Verdicts on an answer. `transient`: 5xx, 408, 425; `rate_limited`: 429.",
        ["transient"],
    )
    statuses: tuple[Status, ...] = setting(
        (),
        "Statuses that count as transient on this route, where no rule of `classify` says otherwise.",
        [404],
    )
    errors: tuple[Literal["connect", "reset", "timeout"], ...] = setting(
        ("connect", "reset", "timeout"),
        "Failures without an answer. `connect`: nothing was sent, so any method is repeated; "
        "`reset`: the connection broke; `timeout`: the attempt timed out.",
        ["connect"],
    )


class Budget(Model):
    """How much retrying may add to the load of the upstream, over all routes that share the settings."""

    ratio: Share = setting("20%", "Retries and hedges allowed per request, on average.", "10%")
    min_per_second: Amount = setting("1", "Retries a second that are always allowed.", 0.2)


class Hedge(Model):
    """A second attempt beside one that is slow: the first good answer counts, the other is given up.

    Only for `methods`, and requests whose body is all here, as it is up to 64 KiB; never for upgrades and
    event streams.
    """

    after: HedgeAfter = setting(
        "p95",
        "How long the answer may take before that: a time, or a percentile of what attempts lately took, "
        "of which 20 must have been seen.",
        "300ms",
    )
    max: Attempts = setting(1, "Hedges of one request, which count among its `attempts`.", 2)


class Retry(Model):
    """Repeats an attempt that failed, where repeating is safe."""

    attempts: Attempts = setting(3, "Attempts in all, the first included.", 2)
    backoff: Backoff = section(Backoff, "The delays between attempts.")
    on: RetryOn = section(RetryOn, "What is retried.")
    methods: Methods = setting(
        IDEMPOTENT,
        "Methods that may be repeated after something was sent: by default those that RFC 9110 calls "
        "idempotent. Any method is repeated when nothing was sent.",
        ["GET", "HEAD", "POST"],
    )
    idempotency_key: Switch = setting(
        False,
        "The upstream honours `Idempotency-Key`: a POST or PATCH without one gets one, the same on all "
        "attempts, and is repeated as other methods are.",
        True,
    )
    budget: Budget | None = Field(
        default_factory=Budget, description="Limit on the share of retries; `off`: none."
    )
    max_body: Size = setting(
        "1MiB",
        "Request bodies up to this size are kept for a repetition; larger ones are sent once.",
        "64KiB",
    )
    retry_after_max: Delay = setting(
        "20s",
        "What the upstream asks for (Retry-After, retry-after-ms, x-ratelimit-reset-…) is waited for up to "
        "this; when it is more, the answer is passed on at once.",
        "5s",
    )
    hedge: Hedge | None = setting(
        None, "A second attempt beside a slow one: `{}` for the defaults.", {"after": "p95"}
    )

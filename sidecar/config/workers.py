"""`workers`: how many processes serve, and what part each has of what is meant for all together."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BeforeValidator, WithJsonSchema

from sidecar.config.units import wrong

if TYPE_CHECKING:
    from sidecar.config.load import Loaded
    from sidecar.config.schema import Route

MOST: Final = 64
_MEND: Final = "write 1 for a single process, a number of processes such as 2, or auto for one per CPU"


def _workers(value: object) -> object:
    if value == "auto":
        return value
    if isinstance(value, (bool, float)) or not re.fullmatch(r"[+-]?[0-9]{1,18}", str(value).strip()):
        raise wrong('"{given}" is neither a number of processes nor auto', value, _MEND)
    number = int(str(value))
    if number < 1:
        raise wrong('"{given}" is less than 1', value, _MEND)
    if number > MOST:
        raise wrong(f'"{{given}}" is more than {MOST}', value, _MEND)
    return number


Workers = Annotated[
    int | Literal["auto"],
    BeforeValidator(_workers),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST}, {"type": "string", "const": "auto"}]}
    ),
]


def share(whole: int, index: int, count: int) -> int:
    """The part of `whole` that the worker `index` (from 0) of `count` has; at least 1.

    The parts make up the whole, unless that is less than `count`. Who has no number among them (`index` is
    `count`) gets the least part.
    """
    return max(whole // count + (index < whole % count), 1)


def shared_out(loaded: Loaded, index: int, count: int) -> Loaded:
    """`loaded` as one worker is to heed it: what bounds all of them together is divided.

    That is memory, connections, attempts in flight, the rate towards a provider and the retries that are
    always allowed. Rates of clients are not divided: workers tell each other of these (`workers/hints.py`),
    as one client's requests may all come to one worker.
    """
    config = loaded.config
    cache, limits = config.cache, config.limits
    config = config.model_copy(
        update={
            "cache": cache.model_copy(update={"memory": max(cache.memory // (count + 1), 1)}),
            "limits": limits.model_copy(update={"connections": -(-limits.connections // count)}),
        }
    )
    policies = tuple(
        policy.model_copy(update={"routes": tuple(_route(it, index, count) for it in policy.routes)})
        for policy in loaded.policies
    )
    return replace(loaded, config=config, policies=policies)


def _route(route: Route, index: int, count: int) -> Route:
    changed: dict[str, Any] = {}
    limit = route.concurrency_limit
    if limit is not None:
        part: dict[str, Any] = {}
        if limit.max is not None:
            part["max"] = share(limit.max, index, count)
        if limit.adaptive is not None:
            rule = limit.adaptive
            part["adaptive"] = rule.model_copy(
                update={name: share(getattr(rule, name), index, count) for name in ("initial", "min", "max")}
            )
        changed["concurrency_limit"] = limit.model_copy(update=part)
    if route.pace is not None:
        rate = route.pace.rate
        changed["pace"] = route.pace.model_copy(
            update={
                "rate": None if rate is None else rate / count,
                "burst": share(route.pace.burst, index, count),
            }
        )
    if route.retry is not None and route.retry.budget is not None:
        budget = route.retry.budget
        rule_part = budget.model_copy(update={"min_per_second": budget.min_per_second / count})
        changed["retry"] = route.retry.model_copy(update={"budget": rule_part})
    return route.model_copy(update=changed) if changed else route

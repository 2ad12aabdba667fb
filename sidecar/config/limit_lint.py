"""Settings of `rate_limit` and `concurrency_limit` that are valid one by one and make no sense together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sidecar.config.limit_policy import Adaptive, ConcurrencyLimit, RateLimit
from sidecar.config.place import Place
from sidecar.config.policy import PolicyFile
from sidecar.config.problems import Problem


def concurrency(limit: ConcurrencyLimit, place: Place) -> Iterator[Problem]:
    """Findings about a route's `concurrency_limit`."""
    key = "concurrency_limit"
    if limit.max is None and limit.adaptive is None:
        yield place.error(key, "how many attempts at once? (write max: 16, or adaptive: {})")
    if limit.max is not None and limit.adaptive is not None:
        # One of them may come from the defaults: that is the one to be turned off.
        ours, other = ("max", "adaptive") if place.inherited(f"{key}.adaptive") else ("adaptive", "max")
        yield place.error(
            f"{key}.{ours}", f"{other} is there too (write {other}: off, or remove one of them)"
        )
    if limit.adaptive is not None:
        yield from _adaptive(limit.adaptive, f"{key}.adaptive", place)
    if limit.queue is None and place.written(f"{key}.queue_size"):
        yield place.warning(f"{key}.queue_size", "nobody waits: queue is off (write queue: 1s)")


def _adaptive(limit: Adaptive, key: str, place: Place) -> Iterator[Problem]:
    if limit.min > limit.max:
        yield place.error(f"{key}.min", "more than max (lower it, or raise max)")
    elif not limit.min <= limit.initial <= limit.max:
        bound, side = ("max", "more") if limit.initial > limit.max else ("min", "less")
        if place.written(f"{key}.initial"):
            yield place.error(f"{key}.initial", f"{side} than {bound} (write one between min and max)")
        else:
            text = f"initial is {limit.initial}, {side} than that (write initial too, between min and max)"
            yield place.error(f"{key}.{bound}", text)
    elif limit.min == limit.max:
        yield place.warning(key, "never changes: min is max (write max in place of adaptive)")


def rate(limit: RateLimit, key: str, place: Place) -> Iterator[Problem]:
    """Findings about the `rate_limit` that stands at `key`."""
    if not limit.shared and place.written(f"{key}.failure"):
        yield place.warning(
            f"{key}.failure", "without effect: each replica counts by itself (write shared: true)"
        )


def without_redis(general: RateLimit | None, files: Iterable[PolicyFile], place: Place) -> Iterator[Problem]:
    """Findings about limits that are `shared`, where no Redis is configured; `place` is sidecar.yaml's."""
    found = [] if general is None else [(general, "limits.rate_limit", place)]
    found += [
        (route.rate_limit, "rate_limit", Place.of(place.origins, policy.name, route.name))
        for policy in files
        for route in policy.routes
        if route.rate_limit is not None
    ]
    for limit, key, at in found:
        if not limit.shared:
            continue
        if limit.failure == "closed":
            text = "no request would pass: there is no Redis (write cache.redis in sidecar.yaml)"
            yield at.error(f"{key}.shared", text)
        else:
            text = "there is no Redis that replicas share (write cache.redis in sidecar.yaml)"
            yield at.warning(f"{key}.shared", text)

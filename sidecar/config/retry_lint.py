"""Settings of `retry` that are valid one by one and make no sense together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sidecar.config.place import Place
from sidecar.config.policy import Route
from sidecar.config.problems import Problem, listed
from sidecar.config.retry_policy import Backoff, Hedge, Percentile, Retry
from sidecar.config.units import format_duration, format_share

_KEYED: Final = ("POST", "PATCH")


def route(route: Route, retry: Retry, place: Place) -> Iterator[Problem]:
    """Findings about `retry` of a route."""
    yield from _worst_case(route, retry, place)
    yield from _what(route, retry, place)
    yield from _key(route, retry, place)
    if retry.hedge is not None:
        yield from _hedge(route, retry, retry.hedge, place)


def _what(route: Route, retry: Retry, place: Place) -> Iterator[Problem]:
    backoff, budget, on = retry.backoff, retry.budget, retry.on
    if retry.attempts == 1:
        yield place.warning("retry.attempts", "1 attempt is no retry (write retry: off)")
    if backoff.base > backoff.max:
        yield place.error(
            "retry.backoff.base",
            f"{place.time('retry.backoff.base', backoff.base)} is longer than max, "
            f"{place.time('retry.backoff.max', backoff.max)} (raise max)",
        )
    if budget is not None and not budget.ratio and not budget.min_per_second:
        yield place.error(
            "retry.budget", "allows no retry at all (write retry: off, or budget: off for no limit)"
        )
    if not (on.verdicts or on.statuses or on.errors):
        yield place.error("retry.on", "nothing is retried (write retry: off)")
    elif not retry.methods and "connect" not in on.errors:
        yield place.error("retry.methods", "no method is retried (write retry: off)")
    else:
        yield from _unsafe(route, retry, place)


def _unsafe(route: Route, retry: Retry, place: Place) -> Iterator[Problem]:
    """Retries of methods that are not idempotent: only when said so, and never by accident of a default.

    Facts (RFC 9110, 9.2.2): a proxy must not repeat such a request by itself, but where nothing was sent.
    """
    methods = route.match.method
    if not methods or any(method in retry.methods for method in methods):
        return
    if retry.idempotency_key and set(methods) & set(_KEYED):
        return
    asked = [
        name
        for name in ("verdicts", "statuses")
        if place.written(f"retry.on.{name}") and getattr(retry.on, name)
    ]
    beyond = (
        [name for name in retry.on.errors if name != "connect"] if place.written("retry.on.errors") else []
    )
    only_connect = place.written("retry.on.errors") and retry.on.errors == ("connect",) and not asked
    if place.inherited("retry") or only_connect:
        return
    names = listed(methods, "and")
    what = f"{names} {'is' if len(methods) == 1 else 'are'} not among retry.methods"
    repeat = f"methods: [{', '.join(methods)}]"
    mend = f"write {repeat} if the app may get a request twice, else on: {{errors: [connect]}}"
    if "connect" not in retry.on.errors:
        yield place.error("retry", f"{what}: nothing is ever retried here ({mend})")
    elif asked or beyond:
        key = f"retry.on.{asked[0] if asked else 'errors'}"
        yield place.error(
            key, f"{what}: only failed connections are retried, not {listed([*asked, *beyond])} ({mend})"
        )
    else:
        yield place.error("retry", f"{what}: only failed connections are retried ({mend})")


def _worst_case(route: Route, retry: Retry, place: Place) -> Iterator[Problem]:
    deadline, attempt = route.deadline, route.attempt_timeout
    if deadline is None or attempt is None or attempt > deadline or retry.attempts < 2:
        return
    if "timeout" not in retry.on.errors:  # no other attempt follows one that took all its time
        return
    waits = longest_backoff(retry.backoff, retry.attempts - 1)
    before_last = (retry.attempts - 1) * attempt + waits
    worst = before_last + attempt
    if worst <= deadline:
        return
    sums = (
        f"{retry.attempts} attempts of {place.time('attempt_timeout', attempt)} and up to "
        f"{format_duration(waits)} of back-off take {format_duration(worst)}, "
        f"longer than the deadline of {place.time('deadline', deadline)}"
    )
    if any(
        place.origin(key).secret
        for key in (
            "deadline",
            "attempt_timeout",
            "retry.attempts",
            "retry.backoff.base",
            "retry.backoff.max",
        )
    ):
        sums = "all attempts and their back-off take longer than the deadline"
    mend = "fewer attempts, a shorter attempt_timeout or a longer deadline"
    if before_last >= deadline:
        yield place.error("retry.attempts", f"{sums}: the last can never run ({mend})")
    else:
        yield place.warning("retry.attempts", f"{sums}: the last is cut short ({mend})")


def longest_backoff(backoff: Backoff, retries: int) -> float:
    """Seconds that the waits before `retries` retries add up to at most, without any Retry-After."""
    total = 0.0
    delay, before = backoff.base, 0.0
    for number in range(1, retries + 1):
        match backoff.strategy:
            case "fixed":
                longest = backoff.base
            case "linear":
                longest = backoff.base * number
            case "fibonacci":
                longest = delay
                delay, before = delay + before, delay
            case "decorrelated_jitter":
                longest = backoff.base * 3.0**number
            case "adaptive" | "smart":
                longest = backoff.max
            case _:
                longest = backoff.base * 2.0 ** (number - 1)
        total += min(longest, backoff.max)
    return total


def _key(route: Route, retry: Retry, place: Place) -> Iterator[Problem]:
    methods = route.match.method
    if retry.idempotency_key and methods and not set(methods) & set(_KEYED):
        yield place.error(
            "retry.idempotency_key",
            f"of no use: the route is for {listed(methods, 'and')}, and only POST and PATCH get a key "
            "(remove it)",
        )


def _hedge(route: Route, retry: Retry, hedge: Hedge, place: Place) -> Iterator[Problem]:
    key = "retry.hedge"
    methods = route.match.method
    if methods and not set(methods) & set(retry.methods) and not place.inherited(key):
        names = listed(methods, "and")
        yield place.error(
            key,
            f"no request is hedged: {names} {'is' if len(methods) == 1 else 'are'} not among retry.methods "
            f"(write methods: [{', '.join(methods)}] if the app may get a request twice, else hedge: off)",
        )
    if retry.attempts == 1:
        yield place.error(key, "1 attempt leaves none for a hedge (raise attempts)")
    elif hedge.max >= retry.attempts and place.written(f"{key}.max"):
        yield place.warning(
            f"{key}.max",
            f"{retry.attempts} attempts, the first included, leave {retry.attempts - 1} for hedges, "
            f"not {hedge.max} (raise attempts)",
        )
    if retry.budget is None:
        text = "without a budget a slow upstream gets every request twice (write a budget)"
        yield place.warning("retry.budget", text)
    yield from _hedge_after(route, retry, hedge, place)


def _hedge_after(route: Route, retry: Retry, hedge: Hedge, place: Place) -> Iterator[Problem]:
    key, after, budget = "retry.hedge.after", hedge.after, retry.budget
    if isinstance(after, Percentile):
        share = 1 - after.share
        if budget is not None and budget.ratio < share - 1e-9:
            yield place.warning(
                key,
                f"{after} is for hedging {format_share(round(share, 2))} of the requests, and the budget "
                f"pays for {format_share(budget.ratio)}, retries included (raise retry.budget.ratio, or "
                f"write p{100 - int(budget.ratio * 100 + 1e-9)})",
            )
        return
    bounds = [name for name in ("attempt_timeout", "deadline") if getattr(route, name) is not None]
    if bounds:
        name = min(bounds, key=lambda it: float(getattr(route, it)))
        bound: float = getattr(route, name)
        if after >= bound:
            yield place.error(
                key,
                f"no hedge is ever sent: {name} ends an attempt after {place.time(name, bound)}, before "
                f"{place.time(key, after)} (write a shorter time)",
            )

"""Settings that are valid one by one and make no sense together."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence

from sidecar.config import cache_lint, classify_lint, listen_lint
from sidecar.config.addresses import Network
from sidecar.config.place import Place
from sidecar.config.policy import Backoff, PolicyFile, Retry, Route
from sidecar.config.problems import Origin, Problem, listed
from sidecar.config.schema import Config
from sidecar.config.units import format_duration
from sidecar.routing import covers


def config(settings: Config, files: Sequence[PolicyFile], origins: Mapping[str, Origin]) -> list[Problem]:
    """Findings about sidecar.yaml."""
    place = Place(origins, "")
    listen = settings.listen
    found: list[Problem] = []
    if not listen.admin.loopback and settings.admin.token is None:
        mend = 'write admin: {token: "${SIDECAR_ADMIN_TOKEN}"}, or listen on 127.0.0.1'
        found.append(place.error("listen.admin", f"not on loopback and without admin.token ({mend})"))
    found += listen_lint.listeners(settings, files, origins)
    for key, text in (
        ("proxies", "every client is believed (write the networks of your proxies)"),
        (
            "debug",
            "everybody may PURGE and see the decision trail (write the networks of those who operate this)",
        ),
    ):
        networks: tuple[Network, ...] = getattr(settings.trusted, key)
        found += [
            place.warning(f"trusted.{key}.{index}", text)
            for index, network in enumerate(networks)
            if network.prefixlen == 0 or network == ipaddress.ip_network("::ffff:0:0/96")
        ]
    return found + cache_lint.memory(settings.cache, files, place)


def policies(files: Sequence[PolicyFile], origins: Mapping[str, Origin]) -> list[Problem]:
    """Findings about policy files, in the order in which their routes are tried."""
    found: list[Problem] = list(listen_lint.hosts(files, origins))
    ingress: list[tuple[Route, Place]] = []
    for policy in files:
        # Each file of egress policies has hosts of its own.
        earlier = ingress if policy.direction == "ingress" else []
        whole = Place(origins, f"policies.{policy.name}")
        found += _file(policy, whole)
        found += classify_lint.file(policy, whole)
        for route in policy.routes:
            path = f"routes.{route.name}"
            place = Place(origins, f"policies.{policy.name}.{path}", f"{path}.")
            found += _unreachable(route, place, earlier)
            found += _times(route, place)
            found += _breaker(route, place)
            if route.cache is not None:
                found += cache_lint.route(route, route.cache, place)
            found += classify_lint.route(route, place)
            if route.retry is not None:
                found += _retry(route, route.retry, place)
            earlier.append((route, place))
    return found


def _file(policy: PolicyFile, place: Place) -> Iterator[Problem]:
    tls = policy.tls
    yield from listen_lint.direction(policy, place)
    if policy.upstream is not None and policy.upstream.scheme == "http" and place.written("tls"):
        yield place.error("tls", "the upstream is plain HTTP (write an https:// upstream, or remove tls)")
    if policy.upstream is not None and policy.upstream.unix is not None and policy.connect_to is not None:
        yield place.error("connect_to", "the upstream is a Unix socket (remove one of the two)")
    if tls.key is not None and tls.cert is None:
        yield place.error("tls.key", "a key without its certificate (add cert)")
    if not tls.verify:
        yield place.warning(
            "tls.verify", "anybody can pass for the upstream (write ca for a private certificate)"
        )


def _unreachable(route: Route, place: Place, earlier: Sequence[tuple[Route, Place]]) -> Iterator[Problem]:
    methods = route.match.method or ("",)
    hiding: list[tuple[Route, Place]] = []
    for method in methods:
        single = route.match.model_copy(update={"method": (method,) if method else ()})
        first = next((it for it in earlier if covers(it[0].match, single)), None)
        if first is None:
            return
        if first not in hiding:
            hiding.append(first)
    names = [f'"{other.name}" ({at.origin("name").short})' for other, at in hiding]
    verb = "matches" if len(names) == 1 else "match"
    yield place.error(
        "match",
        f"no request gets here: {listed(names, 'and')} {verb} all of them before (move this route up)",
    )


def _times(route: Route, place: Place) -> Iterator[Problem]:
    deadline, attempt, limit = route.deadline, route.attempt_timeout, route.concurrency_limit
    if deadline is None:
        return
    whole = place.time("deadline", deadline)
    if attempt is not None and attempt > deadline:
        yield place.error(
            "attempt_timeout",
            f"{place.time('attempt_timeout', attempt)} is longer than the deadline of {whole} "
            "(write a shorter one, or remove it: the deadline bounds attempts too)",
        )
    elif (
        attempt is not None
        and route.retry is not None
        and route.retry.attempts > 1
        and "timeout" in route.retry.on.errors  # else no other attempt follows one that took all its time
    ):
        yield from _worst_case(deadline, attempt, route.retry, place)
    if limit is not None and limit.queue is not None and limit.queue >= deadline:
        yield place.error(
            "concurrency_limit.queue",
            f"{place.time('concurrency_limit.queue', limit.queue)} in the queue leaves nothing of "
            f"the deadline of {whole} (write a shorter one)",
        )


def _worst_case(deadline: float, attempt: float, retry: Retry, place: Place) -> Iterator[Problem]:
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


def _breaker(route: Route, place: Place) -> Iterator[Problem]:
    breaker = route.circuit_breaker
    if breaker is None:
        return
    key = "circuit_breaker"
    if breaker.open_for > breaker.open_max:
        yield place.error(
            f"{key}.open_for",
            f"{place.time(f'{key}.open_for', breaker.open_for)} is longer than open_max, "
            f"{place.time(f'{key}.open_max', breaker.open_max)} (raise open_max)",
        )
    if breaker.failure_ratio is None and breaker.consecutive is None and breaker.slow_call is None:
        yield place.error(key, "nothing opens it (set failure_ratio, consecutive or slow_call, or write off)")
    bounds = [name for name in ("attempt_timeout", "deadline") if getattr(route, name) is not None]
    if breaker.slow_call is not None and bounds:
        name = min(bounds, key=lambda it: float(getattr(route, it)))
        bound: float = getattr(route, name)
        if breaker.slow_call.over >= bound:
            yield place.error(
                f"{key}.slow_call.over",
                f"an attempt never takes {place.time(f'{key}.slow_call.over', breaker.slow_call.over)}: "
                f"{name} ends it after {place.time(name, bound)} (write a shorter time)",
            )


def _retry(route: Route, retry: Retry, place: Place) -> Iterator[Problem]:
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

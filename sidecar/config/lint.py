"""Settings that are valid one by one and make no sense together."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterator, Mapping, Sequence

from sidecar.config import (
    cache_lint,
    classify_lint,
    extras,
    fallback_lint,
    fault_lint,
    limit_lint,
    listen_lint,
    pace_lint,
    production_lint,
    retry_lint,
)
from sidecar.config.addresses import Address, Network, Url
from sidecar.config.place import Place
from sidecar.config.policy import PolicyFile, Route, Tls
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
    for policy in files:
        if policy.upstream is None and policy.direction == "ingress":
            found += fallback_lint.same_upstream(policy, origins, settings.app.url)
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
    found += listen_lint.private(settings.egress.allow_private, place)
    general = settings.limits.rate_limit
    if general is not None:
        found += limit_lint.rate(general, "limits.rate_limit", place)
    if settings.cache.redis is None:
        found += limit_lint.without_redis(general, files, place)
    found += fault_lint.production(settings.environment, files, place)
    found += production_lint.config(settings, place)
    found += extras.missing(settings, place)
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
        found += fallback_lint.same_upstream(policy, origins)
        for route in policy.routes:
            place = Place.of(origins, policy.name, route.name)
            found += _unreachable(route, place, earlier)
            if route.rate_limit is not None:
                found += limit_lint.rate(route.rate_limit, "rate_limit", place)
            found += _attempts(route, place)
            found += fallback_lint.route(route, place)
            for index, rung in enumerate(route.fallback or ()):
                if rung.upstream is not None:
                    below = place.below(f"fallback.{index}")
                    found += _attempts(rung.route(route), below)
                    found += _upstream(rung.upstream, rung.connect_to, rung.tls, below)
                    if rung.classify is not None:
                        found += classify_lint.route(rung.route(route), below)
            found += fault_lint.route(route, place)
            if route.cache is not None:
                found += cache_lint.route(route, route.cache, place, one_reader=policy.direction == "egress")
                found += listen_lint.warming(policy, route.cache, place)
            found += classify_lint.route(route, place)
            earlier.append((route, place))
    return found


def _attempts(route: Route, place: Place) -> Iterator[Problem]:
    """Findings about how a route's upstream is asked."""
    if route.respond is not None:
        return
    yield from _times(route, place)
    yield from _breaker(route, place)
    if route.concurrency_limit is not None:
        yield from limit_lint.concurrency(route.concurrency_limit, place)
    if route.pace is not None:
        yield from pace_lint.route(route, route.pace, place)
    if route.retry is not None:
        yield from retry_lint.route(route, route.retry, place)


def _file(policy: PolicyFile, place: Place) -> Iterator[Problem]:
    yield from listen_lint.direction(policy, place)
    yield from _upstream(policy.upstream, policy.connect_to, policy.tls, place)


def _upstream(upstream: Url | None, connect_to: Address | None, tls: Tls, place: Place) -> Iterator[Problem]:
    """Findings about where an upstream is."""
    if upstream is not None and upstream.scheme == "http" and place.written("tls"):
        yield place.error("tls", "the upstream is plain HTTP (write an https:// upstream, or remove tls)")
    if upstream is not None and upstream.unix is not None and connect_to is not None:
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
    if limit is not None and limit.queue is not None and limit.queue >= deadline:
        yield place.error(
            "concurrency_limit.queue",
            f"{place.time('concurrency_limit.queue', limit.queue)} in the queue leaves nothing of "
            f"the deadline of {whole} (write a shorter one)",
        )


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
    pace, minimum = route.pace, breaker.minimum_calls
    if pace is not None and pace.rate is not None and breaker.failure_ratio is not None:
        calls = pace.rate * breaker.window
        if calls < minimum:
            longer = format_duration(math.ceil(minimum / pace.rate))
            yield place.warning(
                f"{key}.minimum_calls",
                f"{minimum} calls are never reached: at pace.rate a window of "
                f"{place.time(f'{key}.window', breaker.window)} holds {calls:g} (write a lower number, or a "
                f"window of {longer})",
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

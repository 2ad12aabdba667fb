"""Settings of `fallback` and `respond` that are valid one by one and make no sense together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from sidecar.config.addresses import Address, Url
from sidecar.config.patterns import VARIABLE
from sidecar.config.place import Place
from sidecar.config.policy import IDEMPOTENT, Policy, PolicyFile, Route, Rung
from sidecar.config.problems import Origin, Problem, listed, suggestion
from sidecar.config.respond_policy import Respond
from sidecar.decisions.template import QUERY, strings, variables

_OF_UPSTREAM: Final = tuple(key for key in Rung.model_fields if key not in ("on", "respond", "upstream"))
_BODILESS: Final = frozenset({204, 205, 304})
"""RFC 9110, 15.3.5, 15.3.6 and 15.4.5."""


def route(route: Route, place: Place) -> Iterator[Problem]:
    """Findings about `fallback` and `respond` of a route."""
    if route.respond is not None:
        yield from _answer(route.respond, "respond", route, place)
        yield from _unused(route, place)
        return
    answered: dict[str, int] = {}
    for index, rung in enumerate(route.fallback or ()):
        key = f"fallback.{index}"
        if set(rung.on) <= answered.keys():
            step = max(answered[verdict] for verdict in rung.on)
            text = (
                f"never reached: step {step + 1} answers {listed(rung.on, 'and')} before (move this one up)"
            )
            yield place.error(key, text)
        if rung.respond is None and rung.upstream is None:
            yield place.error(key, "neither upstream nor respond (write one of them)")
        elif rung.respond is not None and rung.upstream is not None:
            text = "an upstream and an answer in one step (write two, the upstream first)"
            yield place.error(f"{key}.respond", text)
        elif rung.respond is not None:
            answered |= {verdict: index for verdict in rung.on if verdict not in answered}
            yield from _answer(rung.respond, f"{key}.respond", route, place)
            for name in _OF_UPSTREAM:
                if place.written(f"{key}.{name}"):
                    yield place.error(f"{key}.{name}", "it goes with an upstream (remove it)")
        else:
            yield from _other(rung, key, route, place)


def _answer(respond: Respond, key: str, route: Route, place: Place) -> Iterator[Problem]:
    for name, text in body(respond):
        yield place.error(f"{key}.{name}", text)
    yield from unknown_variables(respond, key, route, place)


def body(respond: Respond) -> Iterator[tuple[str, str]]:
    """What is wrong with the body of an answer, by key."""
    if respond.json is not None and respond.text is not None:
        yield "text", "an answer has one body: json or text (remove one of them)"
    for name in ("json", "text"):
        if getattr(respond, name) and respond.status in _BODILESS:
            yield name, f"an answer with status {respond.status} has no body (remove it)"


def unknown_variables(respond: Respond, key: str, route: Route, place: Place) -> Iterator[Problem]:
    """Variables of an answer that the route's path has not."""
    known = VARIABLE.findall(route.match.path)
    texts = [(f"{key}.json", text) for text in strings(respond.json)] if respond.json is not None else []
    texts += [(f"{key}.text", respond.text)] if respond.text is not None else []
    texts += [(f"{key}.headers.{name}", text) for name, text in respond.headers]
    for where, text in texts:
        for name in variables(text):
            if not name.startswith(QUERY) and name not in known:
                mend = (
                    suggestion(f"{{{name}}}", [f"{{{it}}}" for it in known]) if known else "the path has none"
                )
                yield place.error(
                    where,
                    f"{place.word(where, f'{{{name}}}')} is no variable of the route's path "
                    f"({mend}; braces themselves are doubled)",
                )


def _unused(route: Route, place: Place) -> Iterator[Problem]:
    for key in Policy.model_fields:
        if key in ("respond", "rate_limit") or not place.written(key) or place.inherited(key):
            continue
        if getattr(route, key) is not None:
            yield place.error(key, "never used: the route answers by itself (remove it, or respond)")


def _other(rung: Rung, key: str, route: Route, place: Place) -> Iterator[Problem]:
    """Another upstream: whether it can ever be asked, and how long it may take."""
    methods = route.match.method
    safe = {
        *IDEMPOTENT,
        *(route.retry.methods if route.retry else ()),
        *(route.cache.methods if route.cache else ()),
    }
    if rung.methods is None and methods and not safe.intersection(methods):
        names = listed(methods, "and")
        yield place.warning(
            f"{key}.upstream",
            f"a {names} is sent there only if the first upstream got nothing "
            f"(write methods: [{', '.join(methods)}] if both may get one)",
        )
    if rung.deadline is not None or rung.attempt_timeout is not None:
        return
    if route.deadline is None:
        text = "nothing bounds the wait for it (write attempt_timeout)"
        yield place.warning(f"{key}.upstream", text)
    elif route.attempt_timeout is None:
        yield place.warning(
            f"{key}.upstream",
            "an upstream that hangs takes the route's whole deadline, which leaves nothing for this one "
            "(write attempt_timeout for the route, or a deadline here)",
        )


def same_upstream(
    policy: PolicyFile, origins: Mapping[str, Origin], app: Url | None = None
) -> Iterator[Problem]:
    """Steps that ask the upstream which has failed already; `app` for a file that goes there."""
    primary = policy.upstream or app
    if policy.connect_to is not None:
        first = [policy.connect_to]
    elif primary is not None:
        first = [primary.address]
    else:
        listed = (host.partition(":") for host in policy.hosts)
        first = [Address(host, int(port or 443)) for host, _, port in listed]
    for route, index, rung in _others(policy):
        assert rung.upstream is not None
        target = rung.connect_to or rung.upstream.address
        if any(_same(target, address) for address in first):
            text = "this is the upstream that has failed already (write another one)"
            yield _place(policy, route, origins).error(f"fallback.{index}.upstream", text)


def own_listener(
    files: Sequence[PolicyFile], what: str, listener: Address, origins: Mapping[str, Origin]
) -> Iterator[Problem]:
    """Steps that ask the sidecar itself."""
    for policy in files:
        for route, index, rung in _others(policy):
            assert rung.upstream is not None
            if _same(rung.connect_to or rung.upstream.address, listener):
                key = "upstream" if rung.connect_to is None else "connect_to"
                text = f"this is the sidecar's own {what} listener (write where the upstream listens)"
                yield _place(policy, route, origins).error(f"fallback.{index}.{key}", text)


def _others(policy: PolicyFile) -> Iterator[tuple[Route, int, Rung]]:
    for route in policy.routes:
        for index, rung in enumerate(route.fallback or ()):
            if rung.upstream is not None:
                yield route, index, rung


def _place(policy: PolicyFile, route: Route, origins: Mapping[str, Origin]) -> Place:
    path = f"routes.{route.name}"
    return Place(origins, f"policies.{policy.name}.{path}", f"{path}.")


def _same(a: Address, b: Address) -> bool:
    if a.unix is not None or b.unix is not None:
        return a.unix == b.unix
    local = (a.loopback or a.wildcard) and (b.loopback or b.wildcard)
    return a.port == b.port and (a.host == b.host or local)

"""A route's pipeline, with those of the upstreams that its `fallback` asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from sidecar.pipeline import Handler, Place, compile_alternate, compile_pipeline
from sidecar.responder import Responder

if TYPE_CHECKING:
    from sidecar.config.schema import PolicyFile, Rung, RungTarget


class Pool(Protocol):
    """What makes attempts: `Upstream`, or what stands in for one."""

    name: str

    def handler(self, idle: float | None) -> Handler: ...


Pools = Mapping["RungTarget", Pool]


def pools(policies: Iterable[PolicyFile], make: Callable[[str, Rung], Pool]) -> Pools:
    """One pool for all rungs that name the same upstream, reached in the same way.

    `make` is given the name by which metrics know it: its URL, unless that is the name of another already.
    """
    made: dict[RungTarget, Pool] = {}
    names: set[str] = set()
    for policy in policies:
        for route in policy.routes:
            for rung in route.fallback or ():
                if rung.upstream is None or rung.target in made:
                    continue
                name = str(rung.upstream)
                name = f"{name}/{route.name}" if name in names else name
                names.add(name)
                made[rung.target] = make(name, rung)
    return made


def compile_route(place: Place, upstream: Pool, others: Pools) -> Handler:
    """The pipeline of a route to `upstream`; of one that answers by itself, without any."""
    route = place.route
    if route.respond is not None:
        return compile_pipeline(place, Responder(route.respond, route.match).handler())
    # Those first: the metrics of a route name the upstream that was compiled for it last.
    alternates = []
    for rung in route.fallback or ():
        if rung.upstream is not None:
            other = others[rung.target]
            theirs = replace(place, route=rung.route(route), upstream=other.name)
            alternates.append(compile_alternate(theirs, other.handler(theirs.route.idle)))
    return compile_pipeline(replace(place, alternates=tuple(alternates)), upstream.handler(route.idle))

"""A configuration, compiled: which handler serves which request. Swapped whole on reload."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from sidecar.alternates import compile_route
from sidecar.caching.control import purging
from sidecar.config.addresses import Network, within
from sidecar.config.schema import Route
from sidecar.decisions.asked import LOOKED_AT
from sidecar.layers import observe
from sidecar.listeners.memo import Memo
from sidecar.pipeline import Handler, Place, Services
from sidecar.routing import Matcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sidecar.alternates import Pools
    from sidecar.config.load import Loaded
    from sidecar.config.schema import Features, PolicyFile, RateLimit
    from sidecar.egress import EgressRoutes
    from sidecar.exchange import Exchange
    from sidecar.state import Use
    from sidecar.upstreams.pool import Upstream

UNMATCHED: Final = "unmatched"
"""Name of the route for requests that no other matches: passed through, observed."""

# The schema keeps users from giving a route this name, and a copy is not validated.
_UNMATCHED_ROUTE: Final = Route(name="any").model_copy(update={"name": UNMATCHED})
_PURGE_ROUTE: Final = Route(name="purge")


class Generation:
    """The routes of one configuration and their pipelines."""

    def __init__(
        self,
        policies: Sequence[PolicyFile],
        upstreams: Mapping[str, Upstream],
        app: Upstream,
        services: Services,
        *,
        purgers: Sequence[Network] = (),
        rate_limit: RateLimit | None = None,
        others: Pools = MappingProxyType({}),
    ) -> None:
        """`upstreams` by the name of the policy file; `others` are those that fallbacks name.

        `purgers` are those who may PURGE what is stored; `rate_limit` is for what no route matches, as
        `policies` have it already.
        """
        calls = frozenset(policy.name for policy in policies if policy.direction == "egress")
        routes = [
            (policy, route) for policy in policies if policy.direction == "ingress" for route in policy.routes
        ]
        matcher = Matcher([route.match for _, route in routes])
        self._match = matcher.match
        self.memo: Memo | None = None
        """Of what the caches of these routes answered."""
        if any(route.cache is not None for _, route in routes):
            self.memo = Memo(
                services.clock, looked_at=LOOKED_AT | services.access_log.headers, routing=matcher.looks_at
            )
        self._names = [route.name for _, route in routes]

        def compiled(route: Route, upstream: Upstream, policy: PolicyFile | None = None) -> Handler:
            place = Place(route, upstream.name, services, memo=self.memo)
            if policy is not None:
                depends_on, expects = policy.counted(calls), policy.expected(calls)
                place = replace(place, depends_on=depends_on, expects=expects)
            return compile_route(place, upstream, others)

        self._handlers = [compiled(route, upstreams[policy.name], policy) for policy, route in routes]
        self._unmatched = compiled(_UNMATCHED_ROUTE.model_copy(update={"rate_limit": rate_limit}), app)
        self._purgers = purgers if services.caching.in_use else ()
        self._purge = observe.layer(Place(_PURGE_ROUTE, app.name, services))(purging(services.caching))

    def route(self, exchange: Exchange) -> Handler:
        """The handler of an exchange, which gets the name of its route."""
        request = exchange.request
        if request.method == "PURGE" and within(exchange.client, self._purgers):
            return self._purge
        index = self._match(request.method, request.host, request.path, request.headers)
        if index is None:
            return self._unmatched
        exchange.route = self._names[index]
        return self._handlers[index]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A whole configuration, both planes, ready to serve. Replaced as one."""

    number: int
    """1 at the start; each that was compiled from other files is one more."""
    since: float
    """Unix seconds."""
    loaded: Loaded
    features: Features
    """What is switched on, by the files and by operators."""
    ingress: Generation
    egress: EgressRoutes
    use: Use
    pools: tuple[frozenset[Hashable], frozenset[Hashable]]
    """The keys of its pools: those towards the app, and those of the app's calls."""

    @property
    def generation(self) -> int:
        return self.number

    @property
    def parts(self) -> tuple[Compiled, ...]:
        """The generations that serve, the one in force first: itself alone."""
        return (self,)

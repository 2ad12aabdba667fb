"""The routes of the app's own calls: which policy file a call belongs to, and what is done for it.

Calls come in by several doors (a forward proxy, interception, a base URL, a hard-coded address); what
they ask for is brought to one form here, the upstream's own URL, so that the layers, the cache's keys
above all, see the same call whichever door it came by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from sidecar.alternates import compile_route
from sidecar.caching.control import purging
from sidecar.config.addresses import Network, within
from sidecar.config.schema import Route
from sidecar.errors import BadRequest, EgressDenied, Misdirected, NotServed, SidecarError
from sidecar.exchange import AbsoluteRequest, Exchange, Request, Response
from sidecar.layers import observe
from sidecar.pipeline import Handler, Place, Services, compile_pipeline
from sidecar.routing import Matcher

if TYPE_CHECKING:
    from sidecar.alternates import Pools
    from sidecar.config.schema import PolicyFile
    from sidecar.upstreams.anywhere import Anywhere
    from sidecar.upstreams.pool import Upstream
    from sidecar.upstreams.tunnel import Tunnels

UNLISTED: Final = "unlisted"
"""Name of the route, and of the upstream, for calls to hosts that no policy file lists."""
Unlisted = Literal["tunnel", "deny"]

_UNLISTED_ROUTE: Final = Route(name="any").model_copy(update={"name": UNLISTED})
_PURGE_ROUTE: Final = Route(name="purge")
_TAKES: Final = (
    "this listener is a forward proxy (http://host/… and CONNECT host:port), and serves /POLICY/… for the "
    "policy files of direction egress"
)


class Purge(NamedTuple):
    """What answers PURGE, and who may ask for it."""

    handler: Handler
    purgers: Sequence[Network]

    def may(self, exchange: Exchange) -> bool:
        return within(exchange.client, self.purgers)


class Target(NamedTuple):
    """One upstream of a policy file, with the file's routes to it.

    It does not know the file: two that know each other stay in memory until the collector finds them, with
    all the pipelines of a configuration that was replaced.
    """

    authority: bytes
    """The upstream's, as `Host` says it."""
    scheme: str
    handlers: tuple[Handler, ...]
    unmatched: Handler


class File:
    """A policy file of direction egress, compiled."""

    __slots__ = ("_match", "_names", "_purge", "name", "only", "targets")

    def __init__(
        self,
        policy: PolicyFile,
        upstreams: Mapping[str, Upstream],
        services: Services,
        others: Pools,
        purge: Purge | None,
    ) -> None:
        """`upstreams` by the host as the file lists it; by an empty name where all go to one.

        `others` are those that fallbacks name.
        """
        self.name = policy.name
        self._purge = purge
        self._match = Matcher([route.match for route in policy.routes]).match
        self._names = [route.name for route in policy.routes]
        self.targets = {
            host: self._target(policy, upstream, services, others) for host, upstream in upstreams.items()
        }
        self.only = next(iter(self.targets.values())) if len(self.targets) == 1 else None
        """Where the call goes when it names no host of the file's."""

    def _target(self, policy: PolicyFile, upstream: Upstream, services: Services, others: Pools) -> Target:
        # Between all the routes of a file, calls that none of them takes are told from those of others.
        rest = Route(name="any").model_copy(update={"name": f"{policy.name}/unmatched"})
        handlers = [
            services.overlaps.noting(
                policy.name,
                compile_route(
                    Place(route, upstream.name, services, policy=policy.name, plane="egress"),
                    upstream,
                    others,
                ),
                policy.app_keeps,
            )
            for route in (*policy.routes, rest)
        ]
        assert upstream.url is not None
        authority = upstream.url.authority.encode()
        return Target(authority, upstream.url.scheme, tuple(handlers[:-1]), handlers[-1])

    def handler(self, exchange: Exchange, target: Target) -> Handler:
        """The handler of a call, which is made out to the target."""
        request = exchange.request
        if request.host != target.authority:
            request.host = target.authority
            request.passed_on = None
        request.scheme = target.scheme
        exchange.policy = self.name
        if request.method == "PURGE" and self._purge is not None and self._purge.may(exchange):
            return self._purge.handler
        index = self._match(request.method, request.host, request.path, request.headers)
        if index is None:
            return target.unmatched
        exchange.route = self._names[index]
        return target.handlers[index]

    def takes(self, request: Request) -> bool:
        """Whether one of the file's routes is for a request."""
        return self._match(request.method, request.host, request.path, request.headers) is not None


Owned = tuple[File, Target]
"""A host of a policy file: the file, and where its calls go."""


class EgressRoutes:
    """The egress part of one configuration. Swapped whole on reload, with the rest."""

    def __init__(
        self,
        policies: Sequence[PolicyFile],
        upstreams: Mapping[str, Mapping[str, Upstream]],
        anywhere: Anywhere,
        tunnels: Tunnels,
        services: Services,
        *,
        unlisted: Unlisted = "tunnel",
        others: Pools = MappingProxyType({}),
        purgers: Sequence[Network] = (),
    ) -> None:
        """`upstreams` by the name of the policy file, then as `File` takes them; `others` as well.

        `purgers` are those who may PURGE what is stored.
        """
        place = Place(_PURGE_ROUTE, "app", services, plane="egress")  # counted with those of clients
        purge = Purge(observe.layer(place)(purging(services.caching)), purgers)
        self._files: dict[bytes, File] = {}
        self._secure: dict[bytes, Owned] = {}
        """By the authority that a client over TLS may name."""
        self._plain: dict[bytes, Owned] = {}
        for policy in policies:
            if policy.direction == "egress":
                used = purge if services.caching.in_use and purgers else None
                self._add(policy, File(policy, upstreams[policy.name], services, others, used))
        self._denied = unlisted == "deny"
        place = Place(_UNLISTED_ROUTE, UNLISTED, services, plane="egress")
        self._observed = observe.layer(place)
        self._forward = compile_pipeline(place, anywhere.handler(_UNLISTED_ROUTE.idle))
        self._tunnel = self._observed(tunnels.open)
        self._deny = self._failing(
            EgressDenied("no policy file lists this host, and egress.unlisted is deny (add it to hosts)")
        )

    def _add(self, policy: PolicyFile, file: File) -> None:
        self._files[file.name.encode()] = file
        for listed in policy.hosts:
            owned = file, file.targets.get(listed) or file.targets[""]
            host, _, port = listed.encode().partition(b":")
            if port:
                self._secure[listed.encode()] = self._plain[listed.encode()] = owned
            else:
                self._secure[host] = self._secure[host + b":443"] = owned
                self._plain[host] = self._plain[host + b":80"] = owned

    def _failing(self, error: SidecarError) -> Handler:
        """A handler that answers with `error`, counted and logged as any other answer."""

        async def fail(_: Exchange) -> Response:
            raise type(error)(error.detail)

        return self._observed(fail)

    # -- what listeners ask ------------------------------------------------------------------------

    def owns(self, authority: str) -> bool:
        """Whether TLS to `host:port` is to be intercepted."""
        return authority.lower().encode("latin-1") in self._secure

    def share(self, authority: str, other: str) -> bool:
        """Whether both are of the same policy file."""
        one, two = (self._secure.get(it.lower().encode("latin-1")) for it in (authority, other))
        return one is not None and two is not None and one[0] is two[0]

    def of_url(self, exchange: Exchange) -> Handler | None:
        """The handler of a call that came in by no listener: by its URL, as it is listed or as it is stored.

        None where no policy file has such calls.
        """
        request = exchange.request
        table = self._secure if request.scheme == "https" else self._plain
        owned = _looked_up(table, request.host)
        if owned is None:
            there = [
                (file, it)
                for file in self._files.values()
                for it in file.targets.values()
                if (it.scheme, it.authority) == (request.scheme, request.host)
            ]
            # One upstream may be that of several files: then the routes tell.
            owned = next((it for it in there if it[0].takes(request)), there[0] if there else None)
        if owned is None:
            return None
        exchange.plane = "egress"
        file, target = owned
        return file.handler(exchange, target)

    def based_for(self, host: str) -> str | None:
        """The name of the policy file whose base URL stands for https to `host`."""
        owned = self._secure.get(host.encode())
        if owned is None:
            return None
        file, target = owned
        return file.name if file.only is target else None

    def names(self, path: str) -> bool:
        """Whether `path` begins as a base URL does, with the name of a policy file."""
        return path[1:].partition("/")[0].encode("latin-1") in self._files

    @property
    def denies(self) -> bool:
        """Whether hosts that no file lists may not be called."""
        return self._denied

    def proxied(self, exchange: Exchange) -> Handler:
        """A request that came in by the egress listener itself."""
        exchange.plane = "egress"
        request = exchange.request
        table = self._secure if request.scheme == "https" else self._plain
        owned = _looked_up(table, request.host)
        if owned is not None:
            file, target = owned
            return file.handler(exchange, target)
        if type(request) is AbsoluteRequest:
            return self._elsewhere(exchange)
        return self.based(exchange)

    def _elsewhere(self, exchange: Exchange) -> Handler:
        exchange.upstream = exchange.request.host.decode("latin-1")
        if self._denied:
            exchange.note("egress", "denied")
            return self._deny
        if exchange.request.scheme != "http":
            return self._failing(BadRequest("https goes through this proxy by CONNECT"))
        return self._forward

    def based(self, exchange: Exchange) -> Handler:
        """A request for `/POLICY/…`: the prefix goes, and what is left is asked of that file's upstream."""
        exchange.plane = "egress"
        request = exchange.request
        name, slash, rest = request.target[1:].partition(b"/")
        if not slash:
            name, mark, query = name.partition(b"?")
            rest = mark + query
        file = self._files.get(name)
        if file is None:
            return self._failing(NotServed(_TAKES + self._known()))
        if file.only is None:
            return self._failing(
                NotServed("the policy file lists several hosts and no upstream: call them by their own URLs")
            )
        _retarget(request, b"/" + rest)
        return file.handler(exchange, file.only)

    def _known(self) -> str:
        names = b", ".join(sorted(self._files)).decode()
        return f": {names}" if names else ""

    def intercepted(self, authority: str, exchange: Exchange) -> Handler:
        """A request over TLS that was made for `authority`, a host of ours then."""
        exchange.plane = "egress"
        made_for = self._secure.get(authority.encode("latin-1"))
        host = exchange.request.host
        # HTTP/1.0 may name no host: then it is the one of the connection.
        owned = made_for if not host else _looked_up(self._secure, host)
        if made_for is None or owned is None or owned[0] is not made_for[0]:
            exchange.upstream = authority
            return self._failing(Misdirected(f"the connection was made for {authority}"))
        file, target = owned
        return file.handler(exchange, target)

    def taken_over(self, policy: str, exchange: Exchange) -> Handler:
        """A request to an address that the file `policy` takes over."""
        exchange.plane = "egress"
        file = self._files.get(policy.encode())
        if file is None or file.only is None:
            return self._failing(NotServed("the policy file that listens here is gone"))
        return file.handler(exchange, file.only)

    def tunnelled(self, exchange: Exchange) -> Handler:
        """A CONNECT to a host that no file lists."""
        exchange.plane = "egress"
        if self._denied:
            exchange.note("egress", "denied")
            return self._deny
        return self._tunnel

    def refused(self, exchange: Exchange, error: SidecarError) -> Handler:
        """A request that cannot be served."""
        exchange.plane = "egress"
        return self._failing(error)


def _looked_up(table: Mapping[bytes, Owned], host: bytes) -> Owned | None:
    return table.get(host) or table.get(normal(host))


def normal(host: bytes) -> bytes:
    """An authority as it stands in the tables: in lower case, without a dot behind the name."""
    host = host.lower()
    name, colon, port = host.partition(b":")
    return name.removesuffix(b".") + colon + port


def _retarget(request: Request, target: bytes) -> None:
    request.target = target
    request.passed_on = None
    path, _, request.query = target.partition(b"?")
    request.path = path.decode("latin-1")

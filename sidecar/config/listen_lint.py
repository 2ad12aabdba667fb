"""Findings about where the sidecar listens, and where calls go: ports, hosts, loops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sidecar.config import fallback_lint
from sidecar.config.addresses import Address, Network, Url, is_ip
from sidecar.config.cache_policy import Cache
from sidecar.config.inject_policy import Inject
from sidecar.config.place import Place
from sidecar.config.policy import PolicyFile
from sidecar.config.problems import Origin, Problem, suggestion
from sidecar.config.schema import Config
from sidecar.decisions.reachable import METADATA


def egress_listener(
    settings: Config, files: Sequence[PolicyFile], origins: Mapping[str, Origin]
) -> Address | None:
    """Where the egress listener is to listen: only where it is written, or a policy file has use for it."""
    wanted = "listen.egress" in origins or any(policy.direction == "egress" for policy in files)
    return settings.listen.egress if wanted else None


@dataclass(frozen=True, slots=True)
class _Bound:
    """A listener."""

    what: str
    address: Address
    place: Place
    key: str

    @property
    def plane(self) -> str:
        return "ingress" if self.what in ("ingress", "admin") else "egress"


def _bound(settings: Config, files: Sequence[PolicyFile], origins: Mapping[str, Origin]) -> Iterator[_Bound]:
    main = Place(origins, "")
    listen = settings.listen
    yield _Bound("ingress", listen.ingress, main, "listen.ingress")
    yield _Bound("admin", listen.admin, main, "listen.admin")
    egress = egress_listener(settings, files, origins)
    if egress is not None:
        yield _Bound("egress", egress, main, "listen.egress")
    for index, address in enumerate(listen.intercept):
        yield _Bound("intercept", address, main, _item(main, "listen.intercept", index))
    for policy in files:
        place = Place(origins, f"policies.{policy.name}")
        for index, address in enumerate(policy.takeover):
            yield _Bound(f"takeover of {policy.name}", address, place, _item(place, "takeover", index))


def _item(place: Place, key: str, index: int) -> str:
    return f"{key}.{index}" if place.written(f"{key}.{index}") else key


def listeners(
    settings: Config, files: Sequence[PolicyFile], origins: Mapping[str, Origin]
) -> Iterator[Problem]:
    """Findings about all of them together."""
    bound = tuple(_bound(settings, files, origins))
    for index, one in enumerate(bound):
        for other in bound[:index]:
            if clash(other.address, one.address):
                text = f"the {other.what} listener has this port already (choose another)"
                yield one.place.error(one.key, text)
                break
        if reaches(settings.app.url, one.address):
            if "app.url" in origins:
                text = f"this is the sidecar's own {one.what} listener (write where the app listens)"
                yield Place(origins, "").error("app.url", text)
            else:
                text = f"the app listens there, at {settings.app.url} (choose another, or write app.url)"
                yield one.place.error(one.key, text)
        for policy in files:
            yield from _upstream(policy, one, Place(origins, f"policies.{policy.name}"))
        yield from fallback_lint.own_listener(files, one.what, one.address, origins)
        if one.plane == "egress" and not one.address.loopback:
            yield one.place.warning(
                one.key,
                "not on loopback: whoever reaches it calls out in the app's name "
                "(listen on 127.0.0.1, or let a network policy keep others away)",
            )
    if settings.listen.intercept and not any(policy.hosts for policy in files):
        mend = "write hosts: in a policy file with direction: egress, or remove intercept"
        yield Place(origins, "").error("listen.intercept", f"there are no hosts to intercept ({mend})")


def _upstream(policy: PolicyFile, listener: _Bound, place: Place) -> Iterator[Problem]:
    text = f"this is the sidecar's own {listener.what} listener (write where the upstream listens)"
    if policy.connect_to is not None:
        if reaches(Url("http", policy.connect_to.host, policy.connect_to.port), listener.address):
            yield place.error("connect_to", text)
    elif policy.upstream is not None and reaches(policy.upstream, listener.address):
        yield place.error("upstream", text)


def hosts(files: Sequence[PolicyFile], origins: Mapping[str, Origin]) -> Iterator[Problem]:
    """A host has one owner."""
    owners: dict[str, tuple[str, str]] = {}
    for policy in files:
        place = Place(origins, f"policies.{policy.name}")
        for index, host in enumerate(policy.hosts):
            key = f"hosts.{index}"
            owner = owners.get(host)
            if owner is None:
                owners[host] = (policy.name, place.origin(key).short)
            elif owner[0] == policy.name:
                yield place.error(key, f"{place.word(key, host)} is in the list twice (remove one)")
            else:
                text = f"{place.word(key, host)} belongs to {owner[0]} already, at {owner[1]} (remove one)"
                yield place.error(key, text)


def direction(policy: PolicyFile, place: Place) -> Iterator[Problem]:
    """What a policy file of each direction must say, and must not."""
    if policy.direction == "ingress":
        if policy.hosts:
            mend = "write direction: egress, or match.host in a route"
            yield place.error("hosts", f"hosts are for egress ({mend})")
        if policy.takeover:
            yield place.error("takeover", "takeover is for egress (write direction: egress)")
        if policy.app_keeps is not None:
            yield place.error("app_keeps", "app_keeps is for egress (write direction: egress)")
        if policy.inject != Inject():
            yield place.error("inject", "inject is for egress (write direction: egress)")
        return
    if policy.depends_on != "all":
        mend = "write it into the file of the routes that clients ask for, direction: ingress"
        yield place.error("depends_on", f"a call of the app depends on nothing here ({mend})")
    upstream = policy.upstream
    if (
        policy.inject.any
        and upstream is not None
        and upstream.scheme == "http"
        and not upstream.address.loopback
    ):
        yield place.warning("inject", "the secrets are sent unencrypted (write an https:// upstream)")
    if not policy.hosts and not policy.takeover:
        yield place.error("direction", "egress to which hosts? (write hosts: [api.example.com])")
    if policy.takeover and policy.upstream is None:
        mend = "write for example upstream: http://bridge.internal:5053"
        yield place.error("takeover", f"where do the requests go? ({mend})")


def warming(policy: PolicyFile, cache: Cache, place: Place) -> Iterator[Problem]:
    """Paths to warm are of the file's upstream: there must be one."""
    if policy.direction == "egress" and cache.warm and policy.upstream is None and len(policy.hosts) > 1:
        yield place.error("cache.warm", "of which host? (write upstream, or a file for each host)")


def private(allowed: Sequence[Network], place: Place) -> Iterator[Problem]:
    """Findings about `egress.allow_private`."""
    for index, network in enumerate(allowed):
        key = f"egress.allow_private.{index}"
        if network.prefixlen == 0:
            text = "calls may go to every address (write the networks that are needed)"
            yield place.warning(key, text)
        elif network.num_addresses > 1:
            held = sorted((ip for ip in METADATA if ip in network), key=str)
            if held:
                yield place.warning(
                    key,
                    f"calls may go to the metadata service at {held[0]}, which hands out credentials (write "
                    "the addresses that are needed)",
                )


def depends_on(files: Sequence[PolicyFile], origins: Mapping[str, Origin]) -> Iterator[Problem]:
    """What answers depend on are egress policy files."""
    known = [policy.name for policy in files if policy.direction == "egress"]
    for policy in files:
        if policy.depends_on == "all" or policy.direction == "egress":
            continue
        place = Place(origins, f"policies.{policy.name}")
        for index, name in enumerate(policy.depends_on):
            key = f"depends_on.{index}" if place.written(f"depends_on.{index}") else "depends_on"
            if name not in known:
                mend = suggestion(name, known) if known else "there is none"
                text = f"{place.word(key, name)} is not the name of an egress policy file ({mend})"
                yield place.error(key, text)
            elif name in policy.depends_on[:index]:
                yield place.error(key, f"{place.word(key, name)} is in the list twice (remove one)")


def clash(a: Address, b: Address) -> bool:
    """Whether two listeners cannot both be bound."""
    if a.unix is not None or b.unix is not None:
        return a.unix == b.unix
    if a.port != b.port or not a.port:
        return False
    return a.host == b.host or ((a.wildcard or b.wildcard) and bool(_families(a) & _families(b)))


def _families(address: Address) -> set[int]:
    """IP versions. A socket for all addresses of IPv6 takes none of IPv4 (asyncio sets IPV6_V6ONLY)."""
    return ({6} if ":" in address.host else {4}) if is_ip(address.host) else {4, 6}


def reaches(url: Url, listener: Address) -> bool:
    """Whether a request to `url` would come in at `listener`, as far as its name tells."""
    target = url.address
    if target.unix is not None or listener.unix is not None:
        return target.unix == listener.unix
    if target.port != listener.port:
        return False
    return target.host == listener.host or (target.loopback and (listener.wildcard or listener.loopback))

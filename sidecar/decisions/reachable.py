"""Where calls of the app may go: which texts name a host, and which addresses are of the public internet.

An app can be talked into calling what somebody else chose (server-side request forgery). What stands behind
it then is what only this machine or its network should reach: the cloud's metadata service, databases,
admin ports. So the address that a connection is made to is judged, not the name, and a text that some
resolvers would read as an address in another spelling is none at all.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

METADATA: Final = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "169.254.169.254",  # AWS, Azure, Google Cloud, Oracle, DigitalOcean, …
        "169.254.170.2",  # AWS: credentials of ECS tasks
        "169.254.170.23",  # AWS: credentials of EKS pods
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",  # Google Cloud
        "100.100.100.200",  # Alibaba Cloud
        "192.0.0.192",  # Oracle Cloud
        "168.63.129.16",  # Azure; it looks like a public one
    )
)
"""What tells a machine its secrets, without asking who it is."""

# The IANA registries of special-purpose addresses (RFC 6890), as far as they are not globally reachable.
# `ipaddress.is_global` says other things in other patch versions of Python.
_SPECIAL: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in (
        ("10.0.0.0/8", "a private address"),  # RFC 1918
        ("172.16.0.0/12", "a private address"),
        ("192.168.0.0/16", "a private address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),  # RFC 3927
        ("100.64.0.0/10", "an address behind carrier-grade NAT"),  # RFC 6598
        ("0.0.0.0/8", "the unspecified address"),  # RFC 1122, 3.2.1.3; Linux connects to itself by 0.0.0.0
        ("192.0.0.0/24", "a reserved address"),  # RFC 6890
        ("192.0.2.0/24", "an address for documentation"),  # RFC 5737
        ("198.51.100.0/24", "an address for documentation"),
        ("203.0.113.0/24", "an address for documentation"),
        ("198.18.0.0/15", "an address for benchmarks"),  # RFC 2544
        ("192.88.99.0/24", "a reserved address"),  # RFC 7526: relays of 6to4
        ("224.0.0.0/4", "a multicast address"),  # RFC 5771
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "a reserved address"),  # RFC 1112, 4
        ("::1/128", "a loopback address"),
        ("::/128", "the unspecified address"),
        ("fe80::/10", "a link-local address"),
        ("fc00::/7", "a private address"),  # RFC 4193
        ("fec0::/10", "a site-local address"),  # RFC 3879
        ("ff00::/8", "a multicast address"),
        (
            "64:ff9b:1::/48",
            "a translated address",
        ),  # RFC 8215: which IPv4 address it means, only the network knows
        ("2001::/32", "a Teredo address"),  # RFC 4380
        ("2001::/23", "a reserved address"),  # RFC 2928
        ("2001:db8::/32", "an address for documentation"),  # RFC 3849
        ("3fff::/20", "an address for documentation"),  # RFC 9637
    )
)
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
"""All that IPv6 has given out so far (RFC 4291, 2.4)."""
_V4_AT_THE_END: Final = (
    ipaddress.ip_network("64:ff9b::/96"),  # RFC 6052: NAT64
    ipaddress.ip_network("::/96"),  # RFC 4291, 2.5.5.1: IPv4-compatible
)

_LONGEST_NAME: Final = 253
"""Characters (RFC 1035, 2.3.4)."""
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")


class NotAHost(ValueError):
    """The text is not a host; the message says why."""


class DisguisedAddress(NotAHost):
    """The text is an IP address in a spelling that some programs take for one, and others do not."""


def canonical_host(text: str) -> str:
    """A host of a request in its one form: in lower case, without a dot at its end or brackets around it.

    An IP address is a dotted quad, or an IPv6 address in brackets (RFC 3986, 3.2.2), and nothing else:
    `127.1`, `0x7f.0.0.1` and `2130706433`, which inet_aton(3) reads, raise `DisguisedAddress`, as do
    addresses with a zone or with percent-encoding. Other texts that are no host raise `NotAHost`.
    """
    if text.startswith("["):
        return _bracketed(text)
    name = text.lower().removesuffix(".")
    if _NAME.fullmatch(name) is None:
        if "%" in text:
            raise DisguisedAddress("a host is not percent-encoded")
        raise NotAHost("a host has letters, digits, -, _ and . only; write others as xn--…")
    if len(name) > _LONGEST_NAME:
        raise NotAHost(f"the name of a host has at most {_LONGEST_NAME} characters")
    # A name whose last label is a number is none (RFC 3696, 2; WHATWG URL, 3.5): it is an address or nothing.
    if _NUMBER.fullmatch(name.rpartition(".")[2]) is not None:
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise DisguisedAddress(
                "this is no name, and an address is written as four decimal numbers without leading zeros"
            ) from None
    return name


def _bracketed(text: str) -> str:
    if "%" in text:
        raise DisguisedAddress("an address with a zone means something on this machine only")
    try:
        return str(ipaddress.IPv6Address(text[1:-1] if text.endswith("]") else ""))
    except ValueError:
        raise NotAHost("no IPv6 address stands within [ and ]") from None


def parse_ip(host: str) -> Ip | None:
    """The IP address that `host` is; None for a name. A zone is left out."""
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def embedded(ip: Ip) -> Ip:
    """The IPv4 address that an IPv6 one leads to (RFC 4291, 2.5.5; RFC 6052; RFC 3056); else `ip`."""
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return inner
        if int(ip) > 1 and any(ip in network for network in _V4_AT_THE_END):
            return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip


def special(ip: Ip) -> str | None:
    """What an address is that is none of the public internet: `a loopback address`, …; else None."""
    inner = embedded(ip)
    if ip in METADATA or inner in METADATA:
        return "the address of a metadata service"
    for network, kind in _SPECIAL:
        if inner in network:
            return kind
    return "a reserved address" if inner.version == 6 and inner not in _GLOBAL_UNICAST else None


def refused(ip: Ip, allowed: Iterable[Network]) -> str | None:
    """As `special`, and None too where the address, or the one embedded in it, is in `allowed`."""
    kind = special(ip)
    if kind is None:
        return None
    inner = embedded(ip)
    return None if any(ip in network or inner in network for network in allowed) else kind

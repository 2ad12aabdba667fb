"""Which texts name a host, and which addresses calls of the app may go to."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.reachable import (
    METADATA,
    DisguisedAddress,
    NotAHost,
    canonical_host,
    embedded,
    parse_ip,
    refused,
    special,
)

SPECIAL = {
    "127.0.0.1": "a loopback address",
    "127.255.255.254": "a loopback address",
    "10.0.0.1": "a private address",
    "172.16.0.1": "a private address",
    "172.31.255.255": "a private address",
    "192.168.1.1": "a private address",
    "169.254.1.1": "a link-local address",
    "169.254.169.254": "the address of a metadata service",
    "169.254.170.2": "the address of a metadata service",
    "100.100.100.200": "the address of a metadata service",
    "168.63.129.16": "the address of a metadata service",
    "100.64.0.1": "an address behind carrier-grade NAT",
    "0.0.0.0": "the unspecified address",
    "0.1.2.3": "the unspecified address",
    "255.255.255.255": "the broadcast address",
    "224.0.0.1": "a multicast address",
    "239.255.255.250": "a multicast address",
    "192.0.0.1": "a reserved address",
    "192.0.2.1": "an address for documentation",
    "198.51.100.7": "an address for documentation",
    "203.0.113.9": "an address for documentation",
    "198.18.0.1": "an address for benchmarks",
    "198.19.255.255": "an address for benchmarks",
    "240.0.0.1": "a reserved address",
    "192.88.99.1": "a reserved address",
    "::1": "a loopback address",
    "::": "the unspecified address",
    "fe80::1": "a link-local address",
    "fec0::1": "a site-local address",
    "fc00::1": "a private address",
    "fdff::1": "a private address",
    "fd00:ec2::254": "the address of a metadata service",
    "ff02::1": "a multicast address",
    "ff0e::1": "a multicast address",
    "2001:db8::1": "an address for documentation",
    "3fff::1": "an address for documentation",
    "::ffff:127.0.0.1": "a loopback address",
    "::ffff:10.0.0.1": "a private address",
    "::ffff:169.254.169.254": "the address of a metadata service",
    "::127.0.0.1": "a loopback address",
    "::10.0.0.1": "a private address",
    "64:ff9b::7f00:1": "a loopback address",
    "64:ff9b::a9fe:a9fe": "the address of a metadata service",
    "64:ff9b:1::a00:1": "a translated address",
    "2002:7f00:1::": "a loopback address",
    "2002:a9fe:a9fe::1": "the address of a metadata service",
    "2001:0:7f00:1::1": "a Teredo address",
    "2001:20::1": "a reserved address",
    "100::1": "a reserved address",
    "4000::1": "a reserved address",
    "::ffff:0:7f00:1": "a reserved address",
}
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "11.0.0.1", "172.32.0.1", "172.15.255.255", "100.63.255.255", "100.128.0.1",
    "169.253.255.255", "192.167.0.1", "198.17.255.255", "198.20.0.1", "223.255.255.255", "128.0.0.1",
    "2606:4700::1111", "2a00:1450:4001:800::200e", "2001:200::1", "2001:4860:4860::8888",
    "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), SPECIAL.items())
def test_special_addresses(text: str, kind: str) -> None:
    """What is none of the public internet, also within an IPv6 address; it is said what it is."""
    assert special(ipaddress.ip_address(text)) == kind


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text: str) -> None:
    """What stands just beside the special ones, and public addresses within IPv6 ones."""
    assert special(ipaddress.ip_address(text)) is None


@given(st.ip_addresses())
def test_no_address_is_more_public_than_the_registry_says(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """What `ipaddress` calls private, loopback, link-local, multicast or reserved is never public here."""
    kinds = ip.is_loopback, ip.is_link_local, ip.is_multicast, ip.is_unspecified, ip.is_reserved
    if embedded(ip) == ip and any(kinds):
        assert special(ip) is not None


@pytest.mark.parametrize("ip", sorted(METADATA, key=str), ids=str)
def test_metadata_services_in_every_wrapping(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """They stay what they are as IPv4-mapped, IPv4-compatible, 6to4 and NAT64 addresses."""
    forms = [ip]
    if isinstance(ip, ipaddress.IPv4Address):
        number = int(ip)
        forms += [
            ipaddress.IPv6Address((0xFFFF << 32) | number),
            ipaddress.IPv6Address(number),
            ipaddress.IPv6Address((0x2002 << 112) | (number << 80)),
            ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ]
    assert {special(form) for form in forms} == {"the address of a metadata service"}


@pytest.mark.parametrize(
    ("text", "networks", "kind"),
    [
        ("10.1.2.3", ["10.1.0.0/16"], None),
        ("10.1.2.3", ["10.1.2.3/32"], None),
        ("10.2.2.3", ["10.1.0.0/16"], "a private address"),
        ("::ffff:10.1.2.3", ["10.1.0.0/16"], None),
        ("::ffff:10.1.2.3", ["::ffff:0:0/96"], None),
        ("64:ff9b::a01:203", ["64:ff9b::/96"], None),
        ("2001:0:7f00:1::1", ["127.0.0.0/8"], "a Teredo address"),
        ("fd12::1", ["fd12::/16"], None),
        ("fd12::1", ["10.0.0.0/8"], "a private address"),
        ("127.0.0.1", ["::1/128"], "a loopback address"),
        ("8.8.8.8", [], None),
    ],
)
def test_what_is_listed(text: str, networks: list[str], kind: str | None) -> None:
    """A listed network lets its own addresses pass, in either family, and no others."""
    allowed = [ipaddress.ip_network(network) for network in networks]
    assert refused(ipaddress.ip_address(text), allowed) == kind


HOSTS = {
    "maps.googleapis.com": "maps.googleapis.com",
    "MAPS.GoogleApis.COM.": "maps.googleapis.com",
    "redis": "redis",
    "_x.my-host_1.example": "_x.my-host_1.example",
    "xn--bcher-kva.example": "xn--bcher-kva.example",
    "1.example": "1.example",
    "0x7f.example": "0x7f.example",
    "a.0x7g": "a.0x7g",
    "127.0.0.1": "127.0.0.1",
    "127.0.0.1.": "127.0.0.1",
    "255.255.255.255": "255.255.255.255",
    "[::1]": "::1",
    "[0:0:0:0:0:0:0:1]": "::1",
    "[::FFFF:127.0.0.1]": "::ffff:7f00:1",
    "[2606:4700::1111]": "2606:4700::1111",
}


@pytest.mark.parametrize(("text", "host"), HOSTS.items())
def test_hosts(text: str, host: str) -> None:
    """A host has one form, however it was spelled."""
    assert parse_ip(canonical_host(text)) == parse_ip(host)
    if parse_ip(host) is None:
        assert canonical_host(text) == host


DISGUISED = [
    "2130706433", "0x7f000001", "0X7F000001", "017700000001", "0", "127.1", "127.0.1", "0177.0.0.1",
    "0x7f.0.0.1", "0x7f.1", "127.0.0.01", "127.0.0.0x1", "127.000.000.001", "1.2.3.4.5", "256.1.1.1",
    "127.0.0.1.0", "foo.1", "foo.0x1", "0x", "10.1.", "%31%32%37.0.0.1", "127.0.0.1%2e", "[fe80::1%25eth0]",
    "[::1%lo]",
]  # fmt: skip


@pytest.mark.parametrize("text", DISGUISED)
def test_disguised_addresses(text: str) -> None:
    """What some programs take for an address, and what might become one, is refused as it is."""
    with pytest.raises(DisguisedAddress):
        canonical_host(text)


NOT_HOSTS = [
    "", ".", "..", "a..b", ".a", "a b", "a\tb", "evil@host", "user:pw@host", "host:80", "a/b", "a\\b", "a?b",
    "a#b", "a,b", "a;b", "$(x)", "１２７.0.0.1", "127。0。0。1", "ⓛocalhost", "bücher.example", "a\x00b",
    "localhost\n", "a" * 64, ".".join(["a" * 50] * 6), "[]", "[::1", "::1", "[127.0.0.1]", "[::1]x",
    "[::ffff:0177.0.0.1]", "[v1.x]", "[1::2::3]", "[:::1]",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_HOSTS)
def test_what_is_no_host(text: str) -> None:
    """It is refused, with a reason."""
    with pytest.raises(NotAHost, match=r"."):
        canonical_host(text)


@given(st.text(alphabet="0123456789abcdefxX.", min_size=1, max_size=24))
def test_whatever_the_system_reads_as_an_address_is_one_or_refused(text: str) -> None:
    """What passes as a name is no address for inet_aton(3), so that no resolver takes it for one."""
    try:
        host = canonical_host(text)
    except NotAHost:
        return
    if parse_ip(host) is not None:
        assert socket.inet_aton(host) == ipaddress.ip_address(host).packed
        return
    with pytest.raises(OSError, match="illegal IP address"):
        socket.inet_aton(host)

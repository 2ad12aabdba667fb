"""Where calls of the app may go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from sidecar.config.addresses import Address, parse_target
from sidecar.errors import EgressDenied, LoopDetected
from sidecar.upstreams.dial import EgressDial, is_private, system_resolve
from tests.support.origin import Origin

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "239.255.255.250",
    "192.0.2.1", "198.18.0.1", "240.0.0.1",
    "::1", "::", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


@pytest.mark.parametrize("host", PRIVATE)
def test_private(host: str) -> None:
    """What is no address of the public internet, however it is wrapped."""
    assert is_private(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_public(host: str) -> None:
    """What is one."""
    assert not is_private(host)


def dialer(*allowed: str, own: Sequence[Address] = ()) -> EgressDial:
    return EgressDial([ip_network(network) for network in allowed], lambda: own)


def test_only_public_addresses_of_a_name_are_used() -> None:
    """A name with addresses of both kinds is called at the public one."""
    found = [Address("10.0.0.1", 443), Address("8.8.8.8", 443)]
    assert dialer().permitted(Address("x.example", 443), found) == found[1:]


def test_listed_addresses() -> None:
    """Networks and single addresses may be listed, in the form that was asked or in IPv4's own."""
    for host in ("10.1.2.3", "::ffff:10.1.2.3"):
        asked = Address(host, 80)
        assert dialer("10.1.0.0/16").permitted(asked, [asked]) == [asked]
        with pytest.raises(EgressDenied):
            dialer("10.2.0.0/16", "10.1.2.4").permitted(asked, [asked])


@pytest.mark.parametrize(
    ("own", "target", "loops"),
    [
        ("127.0.0.1:8081", "127.0.0.1:8081", True),
        ("127.0.0.1:8081", "127.0.0.1:8082", False),
        ("127.0.0.1:8081", "127.0.0.2:8081", False),
        ("0.0.0.0:8081", "127.0.0.2:8081", True),
        ("localhost:8081", "127.0.0.1:8081", True),
    ],
)
def test_loops(own: str, target: str, loops: bool) -> None:
    """A call to a listener for calls is told before it is made."""
    asked = parse_target(target)
    dial = dialer("127.0.0.0/8", own=[parse_target(own)])
    if loops:
        with pytest.raises(LoopDetected):
            dial.permitted(asked, [asked])
    else:
        assert dial.permitted(asked, [asked]) == [asked]


async def test_the_address_that_was_judged_is_the_one_called() -> None:
    """A name that leads elsewhere at the second look (DNS rebinding) gains nothing: there is one look."""
    looks = 0

    async def rebinding(address: Address) -> list[Address]:
        nonlocal looks
        looks += 1
        return [Address("127.0.0.1" if looks == 1 else "127.0.0.9", address.port)]

    async with Origin() as origin:
        dial = EgressDial([ip_network("127.0.0.1")], list, rebinding)
        await dial(asyncio.Protocol, Address("x.example", origin.address.port), None, None)
        assert (looks, origin.connections) == (1, 1)
        with pytest.raises(EgressDenied):
            await dial(asyncio.Protocol, Address("x.example", origin.address.port), None, None)


async def test_the_next_address_is_tried() -> None:
    """An address that refuses is no failure while there is another."""

    async def two(address: Address) -> list[Address]:
        return [Address("127.0.0.2", address.port), Address("127.0.0.1", address.port)]

    async with Origin() as origin:
        dial = EgressDial([ip_network("127.0.0.0/8")], list, two)
        await dial(asyncio.Protocol, Address("x.example", origin.address.port), None, None)
        assert origin.connections == 1
    with pytest.raises(ConnectionRefusedError):
        await dial(asyncio.Protocol, Address("x.example", 1), None, None)


@pytest.mark.parametrize("spelled", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost"])
async def test_odd_spellings_are_judged_by_where_they_lead(spelled: str) -> None:
    """The system reads decimal, octal and short forms as addresses, so these are what is judged."""
    found = await system_resolve(Address(spelled, 80))
    with pytest.raises(EgressDenied):
        dialer().permitted(Address(spelled, 80), found)

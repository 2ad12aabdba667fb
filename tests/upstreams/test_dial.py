"""Where calls of the app may go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from sidecar.clock import SystemClock
from sidecar.config.addresses import Address, parse_target
from sidecar.errors import EgressDenied, LoopDetected
from sidecar.upstreams.dial import EgressDial, system_resolve
from tests.support.origin import Origin


def dialer(*allowed: str, own: Sequence[Address] = ()) -> EgressDial:
    return EgressDial([ip_network(network) for network in allowed], lambda: own, clock=SystemClock())


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
        ("localhost:8081", "[::1]:8081", True),
        ("127.0.0.1:8081", "[::ffff:127.0.0.1]:8081", True),
        ("0.0.0.0:8081", "[::ffff:127.0.0.2]:8081", True),
        ("127.0.0.1:8081", "[::ffff:127.0.0.2]:8081", False),
        ("127.0.0.1:8081", "0.0.0.0:8081", True),
        ("[::1]:8081", "[::]:8081", True),
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
        dial = EgressDial([ip_network("127.0.0.1")], list, rebinding, clock=SystemClock())
        await dial(asyncio.Protocol, Address("x.example", origin.address.port), None, None)
        assert (looks, origin.connections) == (1, 1)
        with pytest.raises(EgressDenied):
            await dial(asyncio.Protocol, Address("x.example", origin.address.port), None, None)


async def test_the_next_address_is_tried() -> None:
    """An address that refuses is no failure while there is another."""

    async def two(address: Address) -> list[Address]:
        return [Address("127.0.0.2", address.port), Address("127.0.0.1", address.port)]

    async with Origin() as origin:
        dial = EgressDial([ip_network("127.0.0.0/8")], list, two, clock=SystemClock())
        await dial(asyncio.Protocol, Address("x.example", origin.address.port), None, None)
        assert origin.connections == 1
    with pytest.raises(ConnectionRefusedError):
        await dial(asyncio.Protocol, Address("x.example", 1), None, None)


@pytest.mark.parametrize("spelled", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost"])
async def test_odd_spellings_are_judged_by_where_they_lead(spelled: str) -> None:
    """The system reads decimal, octal and short forms as addresses, so these are what is judged, where such
    a form is written as `upstream`; from the app it is none (`decisions.reachable`).
    """
    found = await system_resolve(Address(spelled, 80))
    with pytest.raises(EgressDenied):
        dialer().permitted(Address(spelled, 80), found)

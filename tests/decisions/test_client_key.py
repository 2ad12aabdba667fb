"""What counts as one client."""

from __future__ import annotations

import pytest

from sidecar.decisions.client_key import LONGEST, digest, key_of, network
from sidecar.exchange import Exchange, Request
from sidecar.headers import Line

ADDRESSES = [
    ("192.0.2.7", "192.0.2.7"),
    ("192.0.2.7:51234", "192.0.2.7"),
    ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
    ("2001:DB8:1:2::9", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
    ("[2001:db8:1:2::9]", "2001:db8:1:2::/64"),
    ("[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
    ("::ffff:192.0.2.7", "192.0.2.7"),
    ("[::ffff:192.0.2.7]:80", "192.0.2.7"),
    ("::1", "::/64"),
    ("unknown", "unknown"),
    ("_hidden", "_hidden"),
    ("", ""),
    ("::nonsense::", "::nonsense::"),
]


def exchange(client: str, *headers: tuple[bytes, bytes]) -> Exchange:
    return Exchange(Request("GET", b"/", [Line(*pair) for pair in headers]), client, 0.0)


@pytest.mark.parametrize(("address", "expected"), ADDRESSES)
def test_addresses(address: str, expected: str) -> None:
    """IPv4 as it is, IPv6 by its /64, without the port that a proxy may have written."""
    assert network(address) == expected
    assert key_of("client")(exchange(address)) == expected


def test_by_header() -> None:
    """The value as it came; a request without it goes by its address, which no value can pass for."""
    key = key_of("header:x-api-key")
    assert key(exchange("192.0.2.7", (b"X-Api-Key", b"abc"))) == b"abc"
    assert key(exchange("192.0.2.7")) == "192.0.2.7"
    assert key(exchange("192.0.2.7", (b"X-Api-Key", b"192.0.2.7"))) != "192.0.2.7"


def test_of_repeated_headers_the_first_counts() -> None:
    """A second one changes nothing."""
    key = key_of("header:x-api-key")
    assert key(exchange("", (b"X-Api-Key", b"one"), (b"X-Api-Key", b"two"))) == b"one"


@pytest.mark.parametrize("setting", ["client", "header:x-api-key"])
def test_keys_are_short(setting: str) -> None:
    """Whatever is sent: long values are told apart by a digest."""
    key = key_of(setting)
    made = {
        key(exchange(f"{letter * 5000}", (b"X-Api-Key", letter.encode() * 5000))) for letter in ("a", "b")
    }
    assert len(made) == 2
    assert all(len(each) <= LONGEST for each in made)


def test_a_digest_does_not_show_the_key() -> None:
    """What goes to Redis is 32 hexadecimal digits; text and bytes have different ones."""
    for client in ("192.0.2.7", b"192.0.2.7", b"secret-api-key"):
        assert len(digest(client)) == 32
        int(digest(client), 16)
    assert digest("192.0.2.7") != digest(b"192.0.2.7")

"""What a rate limit counts as one client."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.exchange import Exchange

Key = str | bytes
"""Text for addresses, bytes for the values of headers: one is never taken for the other."""

LONGEST: Final = 64
"""Characters of a key; of longer ones a digest stands for them."""
_PORT: Final = re.compile(r"\[(.+)\](?::\d+)?|([^:]+):\d+")


def key_of(setting: str) -> Callable[[Exchange], Key]:
    """`client`, or `header:name` in lower case, as a function."""
    if setting == "client":
        return _by_address
    name = setting.removeprefix("header:").encode("ascii")

    def by_header(exchange: Exchange) -> Key:
        for line in exchange.request.headers:
            if line.name == name:
                return line.value if len(line.value) <= LONGEST else _digest(line.value)
        return _by_address(exchange)

    return by_header


def _by_address(exchange: Exchange) -> Key:
    address = exchange.client
    return network(address) if ":" in address or len(address) > LONGEST else address


@lru_cache(maxsize=4096)
def network(address: str) -> str:
    """An IPv4 address, or the subnet of an IPv6 one: one host has all 2^64 of it (RFC 4291, 2.5.1).

    A proxy may write a port behind the address, or a word in its place (RFC 7239, 6).
    """
    written = _PORT.fullmatch(address)
    try:
        ip = ipaddress.ip_address(address if written is None else written[1] or written[2])
    except ValueError:
        text = address if written is None else written[1] or written[2]
        return text if len(text) <= LONGEST else _digest(text.encode("utf-8", "replace")).hex()
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip.packed, 64), strict=False))


def digest(key: Key) -> bytes:
    """What stands for a key outside of this process: 32 hexadecimal digits that do not show it."""
    return _digest(key if isinstance(key, bytes) else b"\x00" + key.encode("utf-8", "replace")).hex().encode()


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()

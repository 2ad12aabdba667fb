"""One question to one name server: over UDP, and over TCP where the answer is too long for that (RFC 1035,
4.2; RFC 7766).

dnspython makes and reads the messages. Its own sockets are not used: they are not connected, so that a
server that is not there is not noticed, and their time-outs read the clock.
"""

from __future__ import annotations

import asyncio
import socket
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

if TYPE_CHECKING:
    from sidecar.config.addresses import Address

_ANSWERS: Final = (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
_LARGEST_DATAGRAM: Final = 65535


class Family(Enum):
    """Which addresses are asked for."""

    V4 = dns.rdatatype.A
    V6 = dns.rdatatype.AAAA


class Found(NamedTuple):
    """What a server says. No addresses: it says that there are none."""

    addresses: tuple[str, ...]
    ttl: float
    """Seconds: the shortest of all records on the way (RFC 2308, 5 where there are no addresses)."""


class NoAnswer(Exception):
    """A server gave no answer; the message says what happened."""

    outcome = "invalid"


class Unreachable(NoAnswer):
    outcome = "unreachable"


class Refused(NoAnswer):
    """It answers that it cannot, or will not (SERVFAIL, REFUSED)."""

    outcome = "refused"


async def ask(server: Address, name: str, family: Family) -> Found:
    """Asks for the addresses of `name`, which is complete. Raises `NoAnswer`; has no time-out of its own."""
    query = dns.message.make_query(dns.name.from_text(name, dns.name.root), family.value)
    try:
        response = await _over_udp(server, query)
        if response is None:
            response = await _over_tcp(server, query)
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "it closed the connection"
        raise Unreachable(f"{server}: {reason}") from error
    except dns.exception.DNSException as error:
        raise NoAnswer(f"{server}: not a valid answer ({error})") from error
    if not isinstance(response, dns.message.QueryMessage):
        raise NoAnswer(f"{server}: not an answer to a query")
    code = response.rcode()
    if code not in _ANSWERS:
        raise Refused(f"{server}: {dns.rcode.to_text(code)}")
    try:
        chain = response.resolve_chaining()
    except dns.exception.DNSException as error:
        raise NoAnswer(f"{server}: not a valid answer ({error})") from error
    found = tuple(record.address for record in chain.answer or ())
    return Found(found, float(chain.minimum_ttl))


def valid(name: str) -> bool:
    """Whether the DNS could know such a name."""
    try:
        dns.name.from_text(name, dns.name.root)
    except (dns.exception.DNSException, UnicodeError):
        return False
    return True


async def _over_udp(server: Address, query: dns.message.Message) -> dns.message.Message | None:
    """The response; None where it was truncated."""
    loop = asyncio.get_running_loop()
    # A socket for each question: its port is part of what a forger would have to guess (RFC 5452, 9.2). A
    # plain one: a datagram transport whose making is cancelled stays open, and uvloop then never closes.
    with socket.socket(
        socket.AF_INET6 if ":" in server.host else socket.AF_INET, socket.SOCK_DGRAM
    ) as asking:
        asking.setblocking(False)
        asking.connect((server.host, server.port))
        asking.send(query.to_wire())
        while True:  # what else comes in is not looked at (RFC 5452, 9.1)
            data = await loop.sock_recv(asking, _LARGEST_DATAGRAM)
            try:
                response = dns.message.from_wire(data, ignore_trailing=True, raise_on_truncation=True)
            except dns.message.Truncated as error:
                if query.is_response(error.message()):  # type: ignore[no-untyped-call]
                    return None
            except (dns.exception.DNSException, ValueError):
                continue
            else:
                if query.is_response(response):
                    return response


async def _over_tcp(server: Address, query: dns.message.Message) -> dns.message.Message:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        wire = query.to_wire()
        writer.write(len(wire).to_bytes(2) + wire)
        size = int.from_bytes(await reader.readexactly(2))
        response = dns.message.from_wire(await reader.readexactly(size), ignore_trailing=True)
    finally:
        writer.close()
    if not query.is_response(response):
        raise dns.message.NotQueryResponse
    return response

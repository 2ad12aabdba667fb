"""The name under which a scenario's providers are called: a name server, and certificates for it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final, Literal, cast

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from sidecar.demo.processes import HOST
from sidecar.drills.scenario import Invalid, Silence
from sidecar.listeners import certificates

NAME: Final = "providers.drill.test"
"""Of a domain that nobody has (RFC 6761, 6.2)."""
TTL: Final = 1
"""Seconds; those who ask may hold an answer for longer."""
_WEEKS: Final = 4 * 7 * 86400.0
"""Seconds by which a certificate is off that is not valid: longer than any clock is wrong."""

Validity = Literal["valid", Invalid]


class NameServer(asyncio.DatagramProtocol):
    """Answers questions for `NAME` over UDP, on loopback."""

    def __init__(self) -> None:
        self.failing: Silence | None = None
        self.questions = 0
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, (HOST, port))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # By class asyncio's own is none.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, address: tuple[str | object, int]) -> None:
        self.questions += 1
        if self.failing == "silent" or self._transport is None:
            return
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return
        self._transport.sendto(self._response(query).to_wire(), address)

    def _response(self, query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        if self.failing is not None:
            response.set_rcode(dns.rcode.from_text(self.failing.upper()))
        elif not query.question or query.question[0].name.to_text(omit_final_dot=True).lower() != NAME:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif query.question[0].rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(query.question[0].name, TTL, "IN", "A", HOST))
        return response


class Certificates:
    """An authority for `NAME` alone, and the certificate of the providers, made anew as a drill needs it."""

    def __init__(self, directory: Path) -> None:
        self._key = certificates.new_key()
        # As old as the oldest that it signs.
        self._authority = certificates.authority(self._key, [NAME], time.time() - 2 * _WEEKS)
        self.trusted = directory / "authority.pem"
        """For SSL_CERT_FILE."""
        self.file = directory / "providers.pem"
        """Certificate and key."""
        self.trusted.write_bytes(certificates.pem(self._authority))
        self.write("valid")

    def write(self, validity: Validity) -> None:
        """Puts another certificate into `file`."""
        wall = time.time()
        if validity != "valid":
            wall += _WEEKS if validity == "not_yet_valid" else -_WEEKS
        key = certificates.new_key()
        leaf = certificates.leaf(NAME, key, self._authority, self._key, wall)
        new = self.file.with_suffix(".new")
        new.touch(0o600)
        new.write_bytes(certificates.pem(leaf) + certificates.key_pem(key))
        new.replace(self.file)

"""A name server on loopback, over UDP and TCP: a test says what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from sidecar.config.addresses import Address

Reply = Callable[[dns.message.Message], dns.message.Message | bytes | None]
"""Makes a response to a query; None: there is none."""

A: Final = dns.rdatatype.A
AAAA: Final = dns.rdatatype.AAAA


def records(*texts: str, ttl: int = 60, negative: int | None = None) -> Reply:
    """Answers with those of the records that the question is for: `NAME A 192.0.2.1`, `NAME CNAME OTHER.`.

    Where there are none, with nothing, and a SOA whose minimum is `negative`.
    """

    def reply(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        question = query.question[0]
        name = question.name
        for text in sorted(texts, key=lambda it: " CNAME " not in it):
            owner, kind, value = text.split(" ", 2)
            if owner.rstrip(".") == name.to_text(omit_final_dot=True) and (
                kind in ("CNAME", dns.rdatatype.to_text(question.rdtype))
            ):
                response.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, value))
                if kind == "CNAME":
                    name = dns.rrset.from_text(name, ttl, "IN", kind, value)[0].target
        if not response.answer and negative is not None:
            _state(response, negative)
        return response

    return reply


def code(name: str, negative: int | None = None) -> Reply:
    """Answers with a response code, `NXDOMAIN` for example."""

    def reply(query: dns.message.Message) -> dns.message.Message:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.from_text(name))
        if negative is not None:
            _state(response, negative)
        return response

    return reply


def silence(_: dns.message.Message) -> None:
    """Answers nothing."""


def _state(response: dns.message.Message, minimum: int) -> None:
    soa = f"ns.example. admin.example. 1 2 3 4 {minimum}"
    response.authority.append(dns.rrset.from_text("example.", 3600, "IN", "SOA", soa))


def truncated(reply: Reply) -> Reply:
    """The answer as it comes over UDP where it is too long for that."""

    def cut(query: dns.message.Message) -> dns.message.Message:
        response = reply(query)
        assert isinstance(response, dns.message.Message)
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response

    return cut


class DnsServer:
    """Used with `async with`; `reply` and `over_tcp` may be changed meanwhile."""

    def __init__(self, reply: Reply, over_tcp: Reply | None = None, *, host: str = "127.0.0.1") -> None:
        self.reply = reply
        self.over_tcp = over_tcp
        self.address = Address(host)
        self.asked: list[tuple[str, str]] = []
        """Names and types that were asked for, in order."""
        self.asked_over_tcp = 0
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        host = self.address.host
        self._tcp = await asyncio.start_server(self._stream, host, self.address.port)
        port = self._tcp.sockets[0].getsockname()[1]
        self._udp, self.protocol = await loop.create_datagram_endpoint(
            lambda: _Udp(self), local_addr=(host, port)
        )
        self.address = Address(host, port)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Nobody listens there any more."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
            await self._tcp.wait_closed()
        self._udp = self._tcp = None

    def count(self, name: str, kind: str = "A") -> int:
        return self.asked.count((name, kind))

    def answer(self, wire: bytes, reply: Reply) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append((name, dns.rdatatype.to_text(question.rdtype)))
        response = reply(query)
        return response.to_wire() if isinstance(response, dns.message.Message) else response

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2))
        self.asked_over_tcp += 1
        answer = self.answer(await reader.readexactly(size), self.over_tcp or self.reply)
        if answer is not None:
            writer.write(len(answer).to_bytes(2) + answer)
        writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self._server.answer(data, self._server.reply)
        if answer is not None:
            self._transport.sendto(answer, addr)

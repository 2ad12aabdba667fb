"""A scripted upstream on loopback: a test says which bytes it sends, when, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import ipaddress
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sidecar.config.addresses import Address

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LARGEST_READ = 256 * 1024
BETWEEN_PIECES = 0.0003
"""Seconds between two pieces of a message: so that each is a segment and a read of its own."""


@dataclass
class Received:
    """A request as the origin got it."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    head: bytes
    body: bytes = b""
    complete: bool = False

    def header(self, name: str) -> str | None:
        """The first field called `name`, in lower case."""
        return next(iter(self.every(name)), None)

    def every(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name]


class Recorder(asyncio.StreamReader):
    """Keeps what comes in for assertions, too."""

    def __init__(self, record: bytearray | None) -> None:
        super().__init__(limit=LARGEST_READ)
        self._record = record

    def feed_data(self, data: Any) -> None:
        if self._record is not None:
            self._record += data
        super().feed_data(data)


class OriginConnection:
    """One accepted connection, in the hands of a script."""

    def __init__(self, origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.origin = origin
        self.reader = reader
        self.writer = writer

    async def head(self) -> Received | None:
        """The next request's head; None when the sidecar closed the connection instead."""
        try:
            raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        pairs = [line.partition(":") for line in lines]
        request = Received(method, target, version, [(name, value.strip()) for name, _, value in pairs], raw)
        self.origin.requests.append(request)
        return request

    async def pieces(self, request: Received) -> AsyncIterator[bytes]:
        """The body of `request` as it comes. Raises `IncompleteReadError` where it ends early."""
        if request.header("transfer-encoding") == "chunked":
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                yield await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
        else:
            left = int(request.header("content-length") or 0)
            while left:
                piece = await self.reader.read(min(left, LARGEST_READ))
                if not piece:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(piece)
                yield piece
        request.complete = True

    async def request(self) -> Received | None:
        """The next request with its body; None when the connection ended instead."""
        request = await self.head()
        if request is not None:
            try:
                request.body = b"".join([piece async for piece in self.pieces(request)])
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
        return request

    async def send(self, *pieces: bytes) -> None:
        """Sends each piece as a segment of its own."""
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(BETWEEN_PIECES)
            self.writer.write(piece)
            await self.writer.drain()

    def half_close(self) -> None:
        if not self.writer.is_closing():  # the sidecar may have been quicker
            self.writer.write_eof()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        if not self.writer.is_closing():
            reset(self.writer.transport)

    async def gone(self) -> None:
        """Returns once the sidecar has closed its side; what comes until then is thrown away."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(LARGEST_READ):
                pass


Script = Callable[[OriginConnection], Awaitable[None]]


def answers(*responses: bytes) -> Script:
    """Answers each request of a connection with the next of `responses`, then for ever with the last."""

    async def script(connection: OriginConnection) -> None:
        number = 0
        while await connection.request() is not None:
            await connection.send(responses[min(number, len(responses) - 1)])
            number += 1

    return script


def reset(transport: asyncio.BaseTransport) -> None:
    """Ends a connection with a RST: closed while lingering for 0 seconds (socket(7))."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    cast(asyncio.Transport, transport).abort()


class Origin:
    """Runs `script` for every connection; a script that returns closes its connection.

    Used with `async with`; `script` may be changed meanwhile.
    """

    def __init__(
        self,
        script: Script | bytes = OK,
        *,
        tls: ssl.SSLContext | None = None,
        unix: Path | None = None,
        record: bool = True,
        buffer: int | None = None,
        address: Address | None = None,
    ) -> None:
        """`buffer`: bytes of the kernel's receive buffer, small where back-pressure is to be felt soon."""
        self.script: Script = answers(script) if isinstance(script, bytes) else script
        self.address = address or Address("127.0.0.1")
        self.connections = 0
        """Accepted so far."""
        self.requests: list[Received] = []
        """Those whose head came in."""
        self.received = bytearray()
        """Every byte that came in, of all connections."""
        self.open: set[OriginConnection] = set()
        self._record = self.received if record else None
        self._tls = tls
        self._unix = unix
        self._buffer = buffer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self) -> None:
        """Binds; after `close`, the same address as before."""
        loop = asyncio.get_running_loop()
        if self._unix is not None:
            self._server = await loop.create_unix_server(self._protocol, str(self._unix))
            self.address = Address(unix=str(self._unix))
            return
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        listening.bind((self.address.host, self.address.port))
        self._server = await loop.create_server(self._protocol, sock=listening, ssl=self._tls)
        self.address = Address(self.address.host, listening.getsockname()[1])

    async def close(self) -> None:
        """Stops listening and drops every connection."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.open):
            connection.writer.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = Recorder(self._record)
        return asyncio.StreamReaderProtocol(reader, self._accept)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(OriginConnection(self, reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: OriginConnection) -> None:
        self.open.add(connection)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(connection)
        finally:
            connection.writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await connection.writer.wait_closed()
            self.open.discard(connection)


# -- certificates ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """Files of a certificate and its key, valid for `localhost` and 127.0.0.1, signed by itself."""

    path: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context


@functools.cache
def _signed(name: str, days: tuple[float, float]) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=days[0]))
        .not_valid_after(now + dt.timedelta(days=days[1]))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def self_signed(
    directory: Path, name: str = "localhost", days: tuple[float, float] = (-0.05, 1)
) -> Certificate:
    """A certificate that is its own authority, written to `directory`; valid from, and to, days from now."""
    certificate, key = _signed(name, days)
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    made.path.write_bytes(certificate)
    made.key.write_bytes(key)
    return made

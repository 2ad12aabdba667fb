"""TLS between a raw transport and a protocol, without sockets: how much goes through OpenSSL at a time."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import cast

import pytest

from sidecar.listeners.tls import TlsTransport
from tests.support.origin import self_signed

PIECE = 64 * 1024
LARGE = bytes(range(256)) * 4096


class Raw(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: object) -> None:
        self.written.append(bytes(cast(bytes, data)))

    def set_protocol(self, protocol: object) -> None: ...
    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Above(asyncio.Protocol):
    """Keeps what is received; pauses once so many bytes are there."""

    def __init__(self) -> None:
        self.received = b""
        self.pause_at = 1 << 62
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= self.pause_at:
            self.pause_at = 1 << 62
            self.transport.pause_reading()


class Pair:
    """A client of OpenSSL's own, and the transport, with the handshake done."""

    def __init__(self, folder: Path) -> None:
        certificate = self_signed(folder, "localhost")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(certificate.path, certificate.key)
        client = ssl.create_default_context(cafile=str(certificate.path))
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self._in, self._out, server_hostname="localhost")
        self.raw, self.above = Raw(), Above()
        self.failed: list[str] = []
        self.transport = TlsTransport(self.raw, server, lambda: self.above, self.failed.append)
        with pytest.raises(ssl.SSLWantReadError):
            self.client.do_handshake()
        self.transport.data_received(self._out.read())
        self.take()
        self.client.do_handshake()
        self.transport.data_received(self._out.read())
        self.take()

    def take(self) -> None:
        """The client gets what was written so far."""
        for piece in self.raw.written:
            self._in.write(piece)
        self.raw.written.clear()

    def read(self) -> bytes:
        found = b""
        try:
            while data := self.client.read(PIECE):
                found += data
        except ssl.SSLWantReadError:
            return found
        return found

    def encrypted(self, data: bytes) -> bytes:
        self.client.write(data)
        return self._out.read()


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def test_a_large_write_goes_out_in_pieces(pair: Pair) -> None:
    """No buffer of OpenSSL's has to hold all of it, which it would keep; and the client gets it whole."""
    pair.transport.write(LARGE)
    sizes = [len(piece) for piece in pair.raw.written]
    assert max(sizes) < PIECE * 1.01
    assert len(sizes) == len(LARGE) // PIECE
    pair.take()
    assert pair.read() == LARGE


@pytest.mark.parametrize("pause_at", [None, 1, 100_000, len(LARGE)])
async def test_what_comes_in_at_once_is_handed_on(pair: Pair, pause_at: int | None) -> None:
    """All of it in its order, also where the protocol above pauses in the midst of it."""
    data = pair.encrypted(LARGE)
    if pause_at is not None:
        pair.above.pause_at = pause_at
    pair.transport.data_received(data)
    if pause_at is not None:
        assert pause_at <= len(pair.above.received) < pause_at + PIECE
        pair.transport.resume_reading()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert pair.above.received == LARGE
    pair.transport.data_received(pair.encrypted(b"and more"))
    assert pair.above.received[-8:] == b"and more"
    assert pair.failed == []

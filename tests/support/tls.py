"""A TLS client whose every byte is in the hands of a test."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from tests.support.egress import HOST
from tests.support.harness import PATIENCE, Client
from tests.support.origin import LARGEST_READ


class Tls:
    """TLS over a raw connection, by memory."""

    def __init__(self, client: Client, context: ssl.SSLContext, name: str | None = HOST) -> None:
        self.client = client
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_hostname=name)

    def hello(self) -> bytes:
        """The first flight."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._out.read()

    async def shake_hands(self, then: bytes = b"") -> None:
        """`then` goes out with the last flight."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                await self._more()
            else:
                if then:
                    self.tls.write(then)
                await self.flush()
                return

    async def flush(self) -> None:
        await self.client.send(self._out.read())

    async def _more(self) -> None:
        data = await asyncio.wait_for(self.client.reader.read(LARGEST_READ), PATIENCE)
        if not data:
            self._in.write_eof()
        self._in.write(data)

    def encrypted(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._out.read()

    async def until(self, end: bytes) -> bytes:
        """What comes, decrypted, up to and including `end`."""
        got = b""
        while not got.endswith(end):
            try:
                got += self.tls.read(LARGEST_READ)
            except ssl.SSLWantReadError:
                await self._more()
        return got

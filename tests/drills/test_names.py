"""The name server and the certificates of a drill, asked as a sidecar asks."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.config.addresses import Address
from sidecar.drills.names import NAME, Certificates, NameServer, Validity
from sidecar.upstreams.dns_wire import Family, Found, Refused, ask
from tests.support.processes import free_port


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[NameServer, Address]]:
    server, port = NameServer(), free_port()
    await server.start(port)
    try:
        yield server, Address("127.0.0.1", port)
    finally:
        server.close()


async def test_the_providers_are_on_this_machine() -> None:
    """Their name has an IPv4 address and no other; any other name does not exist."""
    async with serving() as (_, address):
        assert await ask(address, NAME, Family.V4) == Found(("127.0.0.1",), 1.0)
        assert (await ask(address, NAME, Family.V6)).addresses == ()
        assert (await ask(address, "example.org", Family.V4)).addresses == ()


async def test_it_fails_as_it_is_told() -> None:
    """SERVFAIL, no such name, or nothing at all; and it answers again afterwards."""
    async with serving() as (server, address):
        server.failing = "servfail"
        with pytest.raises(Refused, match="SERVFAIL"):
            await ask(address, NAME, Family.V4)
        server.failing = "nxdomain"
        assert (await ask(address, NAME, Family.V4)).addresses == ()
        server.failing = "silent"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(address, NAME, Family.V4), 0.2)
        server.failing = None
        assert (await ask(address, NAME, Family.V4)).addresses == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("validity", "complaint"),
    [("valid", None), ("expired", "expired"), ("not_yet_valid", "not yet valid")],
)
async def test_certificates_are_what_they_are_called(
    tmp_path: Path, validity: Validity, complaint: str | None
) -> None:
    """A client that trusts the authority takes the valid one alone, and says what is wrong with another."""
    made = Certificates(tmp_path)
    made.write(validity)
    assert made.file.stat().st_mode & 0o077 == 0
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(made.file)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]
    client_side = ssl.create_default_context(cafile=str(made.trusted))
    wrong = pytest.raises(ssl.SSLCertVerificationError, match=complaint)
    async with server:
        with wrong if complaint else contextlib.nullcontext():
            _, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client_side, server_hostname=NAME
            )
            writer.close()

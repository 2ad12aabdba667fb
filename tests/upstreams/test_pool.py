"""Connections to the upstream: made, kept, found closed, given up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.config.addresses import Address
from sidecar.upstreams.pool import CONNECT_TIMEOUT, KEEP_IDLE
from sidecar.upstreams.tls import tls_context
from tests.support.harness import ALL_POLICIES, GET, Harness, eventually
from tests.support.origin import OK, Origin, OriginConnection, answers, self_signed

POST = b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"
PUT_LARGE = b"PUT / HTTP/1.1\r\nHost: app\r\nContent-Length: 300000\r\n\r\n" + bytes(300_000)


async def test_reuse() -> None:
    """One connection serves request after request, of whatever client."""
    async with Origin() as origin, Harness(origin, ALL_POLICIES) as proxy:
        for _ in range(5):
            assert (await proxy.ask(GET)).status == 200
        assert origin.connections == 1
        assert (proxy.upstream.connections, proxy.upstream.idle) == (1, 1)
        cells = proxy.metrics.upstream("origin")
        assert (cells.connections_opened, cells.connections_reused) == (1, 4)


async def test_as_many_as_needed() -> None:
    """Requests at the same time have a connection each; all are kept."""
    together = asyncio.Barrier(5)

    async def script(connection: OriginConnection) -> None:
        while await connection.request() is not None:
            await together.wait()
            await connection.send(OK)

    async with Origin(script) as origin, Harness(origin) as proxy:
        for _ in range(2):
            await asyncio.gather(*(proxy.ask(GET) for _ in range(5)))
        assert origin.connections == 5
        assert proxy.upstream.idle == 5


async def closing(connection: OriginConnection) -> None:
    """Closes after its first answer, at the moment the second request arrives: unread, as far as it knows."""
    await connection.request()
    await connection.send(OK)
    await connection.reader.readexactly(1)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_stale_connection(how: str) -> None:
    """A kept connection that the server closes at that moment: GET is sent anew on another, POST is not."""

    async def script(connection: OriginConnection) -> None:
        await closing(connection)
        if how == "reset":
            connection.reset()

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        assert (await client.ask(GET)).status == 200
        assert (await client.ask(GET)).status == 200
        assert origin.connections == 2
        assert proxy.exchanges[1].attempts == 1, "it is not a failure, and no second attempt"
        answer = await client.ask(POST)
        assert (answer.status, answer.problem["code"]) == (502, "upstream_reset")
        assert origin.connections == 2


async def test_many_stale_connections() -> None:
    """However many kept connections turn out to be closed, one request gets past them all."""
    together = asyncio.Barrier(4)

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        if not together.broken:
            await together.wait()
        await connection.send(OK)
        await connection.reader.readexactly(1)

    async with Origin(script) as origin, Harness(origin) as proxy:
        await asyncio.gather(*(proxy.ask(GET) for _ in range(4)))
        await together.abort()
        assert proxy.upstream.idle == 4
        assert (await proxy.ask(GET)).status == 200
        assert origin.connections == 5
        assert proxy.upstream.connections == 1


async def test_closed_meanwhile() -> None:
    """A kept connection whose end was seen is not used, so that POST is safe too."""
    async with Origin() as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        assert (await client.ask(GET)).status == 200
        for connection in tuple(origin.open):
            connection.close()
        await eventually(lambda: not proxy.upstream.connections)
        assert (await client.ask(POST)).status == 200
        assert origin.connections == 2


async def test_large_body_on_a_stale_connection() -> None:
    """A body that streams cannot be sent anew by the pool; the retry layer, which keeps it, can."""
    async with Origin(closing) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.ask(GET)
        await client.send(PUT_LARGE[:100_000])
        assert (await client.answer()).status == 502
    async with Origin(closing) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.ask(GET)
        await client.send(PUT_LARGE[:100_000])
        await eventually(lambda: origin.connections == 2)
        await client.send(PUT_LARGE[100_000:])
        assert (await client.answer()).status == 200
        assert origin.requests[-1].body == bytes(300_000)


async def test_an_end_before_the_answer() -> None:
    """On a new connection that is a failure of the upstream."""
    for pieces in ((), (b"HTTP/1.1 200 OK\r\nContent-",)):

        async def script(connection: OriginConnection, pieces: tuple[bytes, ...] = pieces) -> None:
            await connection.request()
            await connection.send(*pieces)

        async with Origin(script) as origin, Harness(origin) as proxy:
            answer = await proxy.ask(GET)
            assert (answer.status, answer.problem["code"]) == (502, "upstream_reset")
            assert origin.connections == 1


async def test_a_part_of_an_answer_on_a_kept_connection() -> None:
    """Once a byte of the answer was there, the request was read: it is not sent anew."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(OK)
        await connection.request()
        await connection.send(b"HTTP/1.1 2")

    async with Origin(script) as origin, Harness(origin) as proxy:
        client = await proxy.connect()
        await client.ask(GET)
        assert (await client.ask(GET)).status == 502
        assert origin.connections == 1


async def test_idle_connections_are_closed() -> None:
    """A connection that was not used for a while is closed, before the server would."""
    async with Origin() as origin, Harness(origin) as proxy:
        await proxy.ask(GET)
        proxy.sweep(KEEP_IDLE - 0.1)
        assert proxy.upstream.idle == 1
        proxy.sweep(KEEP_IDLE + 0.1)
        assert proxy.upstream.idle == 0
        await eventually(lambda: not origin.open)
        assert proxy.upstream.connections == 0


async def test_connect_refused() -> None:
    """Nobody listens: 502, whatever the method, and counted."""
    async with Origin() as origin, Harness(origin) as proxy:
        await origin.close()
        for request in (GET, POST):
            answer = await proxy.ask(request)
            assert (answer.status, answer.problem["code"]) == (502, "connect_failed")
            assert answer.problem["detail"] == "Connection refused"
        assert proxy.metrics.upstream("origin").connect_failures == 2
        await origin.listen()
        assert (await proxy.ask(POST)).status == 200


async def test_unknown_name() -> None:
    """A name that does not resolve: 502 that says so."""
    async with Harness(Address("no-such-host.invalid", 80)) as proxy:
        answer = await proxy.ask(GET)
        assert (answer.status, answer.problem["code"]) == (502, "connect_failed")
        assert answer.problem["detail"]


@pytest.fixture
def unreachable() -> Iterator[Address]:
    """An address that takes no connection and refuses none: its queue is full."""
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for filler in (first, second):
            filler.setblocking(False)  # its only parameter
            filler.connect_ex(listening.getsockname())
        yield Address("127.0.0.1", listening.getsockname()[1])


async def test_connect_timeout(unreachable: Address) -> None:
    """Without an answer to the handshake: 502 after `CONNECT_TIMEOUT`, and nothing is left of the attempt."""
    async with Harness(unreachable, {"concurrency_limit": {"max": 9}}) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: proxy.exchanges and proxy.manual.armed)
        await proxy.manual.advance(CONNECT_TIMEOUT - 0.1)
        assert proxy.in_flight == 1
        await proxy.manual.advance(0.2)
        answer = await client.answer()
        assert (answer.status, answer.problem["code"]) == (502, "connect_failed")
        assert answer.problem["detail"] == "no connection within 5 s"
        assert (proxy.in_flight, proxy.upstream.connections, proxy.manual.armed) == (0, 0, 0)
        assert proxy.metrics.upstream("origin").connect_failures == 1


async def test_attempt_timeout_while_connecting(unreachable: Address) -> None:
    """A shorter attempt timeout goes first."""
    async with Harness(unreachable, {"attempt_timeout": "1s"}) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: proxy.exchanges and proxy.manual.armed)
        await proxy.manual.advance(1.1)
        assert (await client.answer()).problem["code"] == "attempt_timeout"
        assert (proxy.upstream.connections, proxy.manual.armed) == (0, 0)


async def test_client_leaves_while_connecting(unreachable: Address) -> None:
    """Nothing goes on for a client that left."""
    async with Harness(unreachable, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: proxy.exchanges and proxy.manual.armed)
        client.close()
        await eventually(lambda: not proxy.listener.connections)
        await eventually(lambda: not proxy.manual.armed)
        assert (proxy.upstream.connections, proxy.in_flight) == (0, 0)


async def test_attempt_timeout() -> None:
    """An upstream that hangs is given up: 504, its connection dropped, and late bytes reach nobody."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, {"attempt_timeout": "1s"}) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.requests)
        await proxy.manual.advance(1.1)
        assert (await client.answer()).status == 504
        await eventually(lambda: not origin.open)
        assert proxy.upstream.connections == 0
        origin.script = answers(OK)
        assert (await client.ask(GET)).body == b"ok"


async def test_a_body_that_stalls() -> None:
    """A response body on which nothing comes for the route's `idle` is broken off."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel", b"lo")
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        assert (await client.head()).status == 200
        assert await client.reader.readexactly(5) == b"hello"
        proxy.sweep(19)
        await asyncio.sleep(0.01)
        assert origin.open
        proxy.sweep(21)
        assert await client.ended()
        assert proxy.ended == ["broken"]
        await eventually(lambda: not origin.open)
        assert proxy.in_flight == 0


async def test_a_body_that_the_client_stalls() -> None:
    """While the client is the slow one, the upstream's silence is not held against it."""

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n", bytes(50_000_000))
        await connection.gone()

    async with Origin(script) as origin, Harness(origin, ALL_POLICIES, limits={"idle": 1000.0}) as proxy:
        client = await proxy.connect()
        await client.send(GET)
        await client.head()
        (connection,) = proxy.listener._connections
        await eventually(lambda: connection._write_paused)
        await asyncio.sleep(0.05)
        await proxy.manual.advance(500)
        proxy.sweep()
        assert len(await client.reader.readexactly(50_000_000)) == 50_000_000
        await eventually(lambda: proxy.ended == ["done"])


async def test_unix_socket(tmp_path: Path) -> None:
    """An upstream on a Unix socket."""
    async with Origin(unix=tmp_path / "app") as origin, Harness(origin, ALL_POLICIES) as proxy:
        for _ in range(2):
            assert (await proxy.ask(GET)).body == b"ok"
        assert origin.connections == 1
        await origin.close()
        (tmp_path / "app").unlink(missing_ok=True)
        answer = await proxy.ask(GET)
        assert (answer.status, answer.problem["detail"]) == (502, "No such file or directory")


# -- TLS -------------------------------------------------------------------------------------------


async def test_tls(tmp_path: Path) -> None:
    """A certificate that is trusted and names the upstream: bodies go both ways."""
    certificate = self_signed(tmp_path)
    large = bytes(range(256)) * 4000
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large) + large
    trusting = tls_context(str(certificate.path), None, None, verify=True)
    async with (
        Origin(response, tls=certificate.server()) as origin,
        Harness(origin, ALL_POLICIES, tls=trusting) as proxy,
    ):
        client = await proxy.connect()
        for _ in range(2):
            assert (await client.ask(PUT_LARGE)).body == large
        assert origin.requests[1].body == bytes(300_000)
        assert origin.connections == 1


@pytest.mark.parametrize(
    ("trusted", "name", "says"),
    [
        (
            False,
            "localhost",
            "the certificate is signed by itself (tls.ca names a file of certificates to trust)",
        ),
        (True, "other.example", "the certificate is not valid for 'other.example'"),
        (True, "127.0.0.2", "the certificate is not valid for '127.0.0.2'"),
    ],
    ids=["untrusted", "wrong name", "wrong address"],
)
async def test_tls_refused(tmp_path: Path, trusted: bool, name: str, says: str) -> None:
    """A certificate that does not do: 502, which says why, and not a byte is sent."""
    certificate = self_signed(tmp_path)
    context = tls_context(str(certificate.path) if trusted else None, None, None, verify=True)
    async with (
        Origin(tls=certificate.server()) as origin,
        Harness(origin, tls=context, server_name=name) as proxy,
    ):
        answer = await proxy.ask(GET)
        assert (answer.status, answer.problem["code"]) == (502, "upstream_certificate")
        assert answer.problem["detail"] == says
        assert not origin.received
        assert proxy.upstream.connections == 0


async def test_tls_not_verified(tmp_path: Path) -> None:
    """`verify: false` takes any certificate."""
    certificate = self_signed(tmp_path)
    async with (
        Origin(tls=certificate.server()) as origin,
        Harness(
            origin, tls=tls_context(None, None, None, verify=False), server_name="other.example"
        ) as proxy,
    ):
        assert (await proxy.ask(GET)).status == 200


async def test_tls_to_a_plain_server() -> None:
    """An upstream that speaks no TLS: 502 that says so."""
    async with Origin(b"HTTP/1.1 400 Bad Request\r\n\r\n") as origin:
        origin.script = plain
        async with Harness(origin, tls=tls_context(None, None, None, verify=False)) as proxy:
            answer = await proxy.ask(GET)
            assert (answer.status, answer.problem["code"]) == (502, "upstream_tls")
            assert answer.problem["detail"] == "what listens there does not speak TLS"


async def plain(connection: OriginConnection) -> None:
    await connection.reader.readexactly(1)
    await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await connection.gone()


async def test_tls_that_hangs(tmp_path: Path) -> None:
    """A handshake that does not end is within the time for connecting."""

    async def silent(connection: OriginConnection) -> None:
        await connection.gone()

    async with (
        Origin(silent) as origin,
        Harness(origin, tls=tls_context(None, None, None, verify=False)) as proxy,
    ):
        client = await proxy.connect()
        await client.send(GET)
        await eventually(lambda: origin.received)
        await proxy.manual.advance(CONNECT_TIMEOUT + 0.1)
        answer = await client.answer()
        assert answer.problem["detail"] == "no connection within 5 s"
        await eventually(lambda: not origin.open)


async def test_read_to_close_over_tls(tmp_path: Path) -> None:
    """A body that ends with its connection ends there over TLS, too."""
    certificate = self_signed(tmp_path)

    async def script(connection: OriginConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n", b"hello")

    async with (
        Origin(script, tls=certificate.server()) as origin,
        Harness(origin, tls=tls_context(str(certificate.path), None, None, verify=True)) as proxy,
    ):
        assert (await proxy.ask(GET)).body == b"hello"

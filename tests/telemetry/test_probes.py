"""Probes against real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from sidecar.config.addresses import parse_url
from sidecar.telemetry.probes import ConnectProbe, Finding, HttpProbe, Probe, Sign, probe_of

Serve = Callable[[int], Awaitable[int]]
PATIENCE = 0.2
"""Seconds until a probe that must time out does."""


async def ask(probe: Probe) -> Finding:
    try:
        return await probe()
    finally:
        await probe.close()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts an app whose /health answers with a status; gives its port."""
    runners: list[web.AppRunner] = []

    async def start(status: int) -> int:
        async def health(_: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": "/elsewhere"})

        app = web.Application()
        app.router.add_get("/health", health)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        return port

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A socket whose connections the kernel accepts and nobody serves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def refused() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.mark.parametrize(
    ("status", "finding"),
    [
        (200, Finding(Sign.PASSED)),
        (204, Finding(Sign.PASSED)),
        (302, Finding(Sign.PASSED)),
        (404, Finding(Sign.ODD, "its health path answers 404")),
        (500, Finding(Sign.FAILED, "its health path answers 500")),
        (503, Finding(Sign.FAILED, "its health path answers 503")),
    ],
)
async def test_the_status_tells(serve: Serve, status: int, finding: Finding) -> None:
    """2xx and 3xx pass, 5xx fails, 4xx means that the path is odd; redirects are not followed."""
    port = await serve(status)
    assert await ask(HttpProbe(f"http://127.0.0.1:{port}/health")) == finding


async def test_nobody_listening_is_dead(refused: int) -> None:
    """Refused, with the operating system's words, by both probes."""
    dead = Finding(Sign.DEAD, "Connection refused")
    http = await ask(HttpProbe(f"http://127.0.0.1:{refused}/health"))
    assert http.sign is Sign.DEAD
    connect = await ask(ConnectProbe("127.0.0.1", refused))
    assert connect.sign is dead.sign
    for finding in (http, connect):
        assert "refused" in finding.reason.lower() or str(refused) in finding.reason


async def test_an_app_that_stands_still_is_busy(listening: socket.socket) -> None:
    """The connection is taken and no answer comes: busy, not dead."""
    port = listening.getsockname()[1]
    finding = await ask(HttpProbe(f"http://127.0.0.1:{port}/health", timeout=PATIENCE))
    assert finding == Finding(Sign.BUSY, "no answer within 0.2 s")
    assert (await ask(ConnectProbe("127.0.0.1", port, timeout=PATIENCE))).sign is Sign.PASSED


async def test_a_full_backlog_is_silent() -> None:
    """No room for a connection: silent, which only counts while no traffic is answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        crowd = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            crowd.append(one)
        http = await ask(HttpProbe(f"http://127.0.0.1:{port}/health", timeout=PATIENCE))
        connect = await ask(ConnectProbe("127.0.0.1", port, timeout=PATIENCE))
        for one in crowd:
            one.close()
    assert (http.sign, connect.sign) == (Sign.SILENT, Sign.SILENT)


async def test_closing_without_an_answer_is_dead() -> None:
    """A process that takes connections and drops them serves nobody."""

    async def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(drop, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    finding = await ask(HttpProbe(f"http://127.0.0.1:{port}/health"))
    server.close()
    await server.wait_closed()
    assert finding.sign is Sign.DEAD


async def test_what_is_not_http_is_dead() -> None:
    """An answer that no HTTP client understands is no health."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-x\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    finding = await ask(HttpProbe(f"http://127.0.0.1:{port}/health"))
    server.close()
    await server.wait_closed()
    assert finding.sign is Sign.DEAD


async def test_each_probe_makes_its_own_connection(refused: int, serve: Serve) -> None:
    """A kept connection would hide that the listener has gone."""
    connections = 0

    class Counting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal connections
            connections += 1
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = await asyncio.get_running_loop().create_server(Counting, "127.0.0.1", 0)
    probe = HttpProbe(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health")
    for _ in range(3):
        assert (await probe()).sign is Sign.PASSED
    await probe.close()
    server.close()
    await server.wait_closed()
    assert connections == 3


async def test_a_unix_socket_can_be_probed(tmp_path: Path) -> None:
    """Both kinds of probe take `unix:` URLs; a missing socket is dead."""
    path = tmp_path / "app.sock"
    url = parse_url(f"unix:{path}")
    assert (await ask(probe_of(url, "/health"))).sign is Sign.DEAD
    assert (await ask(probe_of(url, None))).sign is Sign.DEAD

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/health", health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    assert (await ask(probe_of(url, "/health"))).sign is Sign.PASSED
    assert (await ask(probe_of(url, None))).sign is Sign.PASSED
    await runner.cleanup()


async def test_the_health_path_decides_the_probe(serve: Serve) -> None:
    """With a path its answer counts, without one a connection does."""
    port = await serve(503)
    url = parse_url(f"http://127.0.0.1:{port}")
    assert (await ask(probe_of(url, "/health"))).sign is Sign.FAILED
    assert (await ask(probe_of(url, None))).sign is Sign.PASSED

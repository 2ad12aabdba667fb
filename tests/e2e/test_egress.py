"""The app's own calls by real clients, each by a door that fits it, with real TLS on both sides."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import pytest_asyncio
import requests
from aiohttp.abc import AbstractResolver, ResolveResult

from tests.support.doors import HOST, Doors, opened, running
from tests.support.processes import Program, Sidecar, TinyApp, free_port, total, until_connects


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    async with opened(tmp_path_factory.mktemp("egress")) as doors:
        yield doors


class Override(AbstractResolver):
    """A hosts file with one line."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        assert host == HOST
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 4}]

    async def close(self) -> None:
        pass


Fetched = tuple[int, dict[str, str], bytes]


async def by_requests(doors: Doors, path: str) -> Fetched:
    """Sends `CONNECT … HTTP/1.0` or 1.1, as its version of http.client does."""

    def ask() -> Fetched:
        with requests.Session() as session:
            session.proxies = {"https": doors.proxy}
            reply = session.get(f"https://{HOST}{path}", verify=doors.bundle, timeout=10)
            return reply.status_code, dict(reply.headers), reply.content

    return await asyncio.to_thread(ask)


async def by_http_client(doors: Doors, path: str) -> Fetched:
    def ask() -> Fetched:
        context = ssl.create_default_context(cafile=doors.bundle)
        client = http.client.HTTPSConnection("127.0.0.1", doors.egress, context=context, timeout=10)
        client.set_tunnel(HOST, 443)
        client.request("GET", path)
        reply = client.getresponse()
        fetched = reply.status, dict(reply.getheaders()), reply.read()
        client.close()
        return fetched

    return await asyncio.to_thread(ask)


async def by_httpx(doors: Doors, path: str) -> Fetched:
    context = ssl.create_default_context(cafile=doors.bundle)
    async with httpx.AsyncClient(proxy=doors.proxy, verify=context) as client:
        reply = await client.get(f"https://{HOST}{path}")
        return reply.status_code, dict(reply.headers), reply.content


async def by_aiohttp_and_proxy(doors: Doors, path: str) -> Fetched:
    context = ssl.create_default_context(cafile=doors.bundle)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"https://{HOST}{path}", proxy=doors.proxy, ssl=context) as reply,
    ):
        return reply.status, dict(reply.headers), await reply.read()


async def by_aiohttp_and_hosts(doors: Doors, path: str) -> Fetched:
    """As the app does: no proxy, a URL that cannot be changed, and a hosts file that leads here."""
    context = ssl.create_default_context(cafile=doors.bundle)
    connector = aiohttp.TCPConnector(resolver=Override(), ssl=context)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"https://{HOST}:{doors.intercept}{path}") as reply,
    ):
        return reply.status, dict(reply.headers), await reply.read()


async def by_base_url(doors: Doors, path: str) -> Fetched:
    async with httpx.AsyncClient(base_url=f"{doors.proxy}/provider") as client:
        reply = await client.get(path)
        return reply.status_code, dict(reply.headers), reply.content


async def by_plain_proxy(doors: Doors, path: str) -> Fetched:
    """An http URL of the host, through the proxy: it goes on by https."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{HOST}{path}", proxy=doors.proxy) as reply,
    ):
        return reply.status, dict(reply.headers), await reply.read()


CLIENTS: list[Callable[[Doors, str], Any]] = [
    by_requests,
    by_http_client,
    by_httpx,
    by_aiohttp_and_proxy,
    by_aiohttp_and_hosts,
    by_base_url,
    by_plain_proxy,
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("client", CLIENTS, ids=lambda it: it.__name__)
async def test_a_client(doors: Doors, client: Callable[[Doors, str], Any]) -> None:
    """The call reaches the provider as if the client had made it; the second one is a hit."""
    status, _, body = await client(doors, "/echo?a=b")
    assert status == 200
    seen = json.loads(body)
    assert (seen["method"], seen["target"], seen["headers"]["host"]) == ("GET", "/echo?a=b", HOST)
    assert not {"via", "x-forwarded-for", "x-request-id", "proxy-connection"} & set(seen["headers"])
    first = await client(doors, f"/shared/{client.__name__}")
    second = await client(doors, f"/shared/{client.__name__}")
    assert first[2] == second[2]
    lowered = {name.lower(): value for name, value in second[1].items()}
    assert lowered["cache-status"].startswith("sidecar; hit")


@pytest.mark.asyncio(loop_scope="module")
async def test_large_bodies(doors: Doors) -> None:
    """Megabytes both ways, over TLS on both sides."""
    body = os.urandom(5_000_000)
    context = ssl.create_default_context(cafile=doors.bundle)
    async with httpx.AsyncClient(proxy=doors.proxy, verify=context, timeout=30) as client:
        reply = await client.post(f"https://{HOST}/echo", content=body)
        assert reply.json()["length"] == len(body)
        for way in ("bytes", "stream"):
            assert len((await client.get(f"https://{HOST}/{way}/5000000")).content) == 5_000_000


@pytest.mark.asyncio(loop_scope="module")
async def test_events_come_as_they_are_sent(doors: Doors) -> None:
    """A stream of events is not held back by the TLS in between."""
    context = ssl.create_default_context(cafile=doors.bundle)
    url = f"https://{HOST}/events/one"
    async with (
        httpx.AsyncClient(proxy=doors.proxy, verify=context, timeout=10) as client,
        client.stream("GET", url) as reply,
    ):
        lines = reply.aiter_lines()
        for number in (1, 2, 3):
            assert await anext(lines) == f"data: {number}"
            assert await anext(lines) == ""
            if number < 3:
                assert (await client.post(url)).status_code == 204


@pytest.mark.asyncio(loop_scope="module")
async def test_websocket(doors: Doors) -> None:
    """A WebSocket inside of intercepted TLS works as ever."""
    context = ssl.create_default_context(cafile=doors.bundle)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"https://{HOST}/ws", proxy=doors.proxy, ssl=context) as socket,
    ):
        for number in range(100):
            await socket.send_str(f"message {number}")
            assert await socket.receive_str() == f"message {number}"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_host_that_nobody_owns(doors: Doors) -> None:
    """The client sees the host's own certificate: our CA would not do, and is not needed."""
    url = f"https://localhost:{doors.provider.port}/echo"
    with pytest.raises(requests.exceptions.SSLError):
        await asyncio.to_thread(
            requests.get, url, proxies={"https": doors.proxy}, verify=doors.bundle, timeout=10
        )
    own = str(doors.provider.certificate.path)
    context = ssl.create_default_context(cafile=own)
    context.check_hostname = False  # the certificate is for HOST
    async with httpx.AsyncClient(proxy=doors.proxy, verify=context) as client:
        reply = await client.get(url)
        assert reply.json()["headers"]["host"] == f"localhost:{doors.provider.port}"
        stream = reply.extensions["network_stream"]
        seen = stream.get_extra_info("ssl_object").getpeercert(True)
    assert seen == ssl.PEM_cert_to_DER_cert(doors.provider.certificate.path.read_text())


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_counted(doors: Doors) -> None:
    """Connections of each listener, those intercepted, and calls by route and upstream."""
    before = await doors.sidecar.metrics()
    await by_httpx(doors, "/x")
    await by_aiohttp_and_hosts(doors, "/x")
    after = await doors.sidecar.metrics()

    def more(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    for listener in ("egress", "intercept"):
        assert more("nextvision_connections_intercepted_total", listener=listener) == 1
        assert more("nextvision_connections_accepted_total", listener=listener) == 1
    assert more("nextvision_api_requests_total", route="rest") == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_no_key_in_the_output(doors: Doors) -> None:
    """Nothing that the sidecar writes has a private key, and the CA's key is its owner's alone."""
    folder = doors.sidecar.folder
    assert "PRIVATE" not in doors.sidecar.output.read_text()
    assert (folder / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600


CALLER = """\
import asyncio, sys
import aiohttp
from aiohttp import web

async def work(request):
    at_work.set()
    await go.wait()
    async with aiohttp.ClientSession() as session, session.get(sys.argv[2]) as reply:
        return web.json_response({"called": reply.status})

async def begun(request):
    await at_work.wait()
    return web.Response()

async def release(request):
    go.set()
    return web.Response()

at_work, go = asyncio.Event(), asyncio.Event()
app = web.Application()
app.router.add_get("/work", work)
app.router.add_get("/begun", begun)
app.router.add_get("/release", release)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


async def until_refused(session: aiohttp.ClientSession, url: str) -> None:
    """Returns once nobody listens there any more."""
    while True:
        try:
            await session.get(url)
        except aiohttp.ClientConnectorError:
            return


async def test_the_app_may_call_out_while_ingress_drains(tmp_path: Path) -> None:
    """SIGTERM: no new clients, but a request in flight may still make its calls; then egress closes too."""
    provider = TinyApp(tmp_path)
    port, egress = free_port(), free_port()
    (tmp_path / "caller.py").write_text(CALLER)
    policy = {
        "name": "provider",
        "direction": "egress",
        "hosts": [HOST],
        "upstream": f"http://127.0.0.1:{provider.port}",
        "routes": [{"name": "all", "match": {"path": "/*"}}],
    }
    caller = Program(
        [sys.executable, str(tmp_path / "caller.py"), str(port), f"http://127.0.0.1:{egress}/provider/x"],
        tmp_path / "caller.out",
    )
    sidecar = Sidecar(tmp_path, port, policy, ca={"dir": "ca"})
    config = (tmp_path / "sidecar.yaml").read_text()
    (tmp_path / "sidecar.yaml").write_text(
        config.replace("listen:\n", f"listen:\n  egress: 127.0.0.1:{egress}\n")
    )
    async with running(provider, caller, sidecar):
        await until_connects(port)
        async with aiohttp.ClientSession() as session:
            working = asyncio.create_task(session.get(f"{sidecar.url}/work"))
            assert (await session.get(f"http://127.0.0.1:{port}/begun")).status == 200
            sidecar.send(signal.SIGTERM)
            await until_refused(session, f"{sidecar.url}/begun")
            assert (await session.get(f"http://127.0.0.1:{port}/release")).status == 200
            reply = await working
            assert await reply.json() == {"called": 200}
        assert await sidecar.end() == 0
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection("127.0.0.1", egress)


async def test_without_egress_policies_nothing_more_listens(tmp_path: Path) -> None:
    """Those who have no such file see no new port."""
    sidecar = Sidecar(tmp_path, free_port())
    async with running(sidecar):
        await until_connects(sidecar.admin_port)
        for _ in range(100):
            if listening := [line for line in sidecar.log() if line["message"] == "listening"]:
                break
            await asyncio.sleep(0.02)
    assert not {"egress", "intercept"} & set(listening[0])
    assert not (tmp_path / ".sidecar" / "ca").exists()


async def test_a_ca_that_cannot_be_made(tmp_path: Path) -> None:
    """Exit 2, with the key and the mend, and no traceback."""
    (tmp_path / "file").write_text("")
    policy = {"name": "p", "direction": "egress", "hosts": [HOST], "routes": [{"name": "all"}]}
    sidecar = Sidecar(tmp_path, free_port(), policy, ca={"dir": "file/ca"})
    await Program.start(sidecar)
    assert sidecar.process is not None
    assert await asyncio.wait_for(sidecar.process.wait(), 15) == 2
    output = sidecar.output.read_text()
    assert "sidecar: ca.dir: " in output
    assert "(set ca.dir to a directory that the sidecar may write to)" in output
    assert "Traceback" not in output

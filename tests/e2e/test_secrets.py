"""Keys that pass through the sidecar are left nowhere: not in logs, figures, admin pages, stores, files."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest
import requests

from tests.support.marked import DEAD, HEADERS, HOST, INJECTED, QUERY, SENT, MarkedSidecar, found
from tests.support.origin import LARGEST_READ
from tests.support.processes import Sidecar, TinyApp, until_connects
from tests.support.valkey import Valkey, running


async def raw(port: int, data: str) -> bytes:
    """What a client that writes its own HTTP gets."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data.encode())
    try:
        return await asyncio.wait_for(reader.read(LARGEST_READ), 5)
    finally:
        writer.close()


async def traffic(sidecar: Sidecar, egress: int) -> list[str]:
    """Keys wherever a client may put them, by every door; also where it ends in an error."""
    base = f"http://127.0.0.1:{egress}"
    bundle = str(sidecar.folder / "ca" / "bundle.pem")
    seen: list[str] = []

    def through_the_proxy() -> None:
        with requests.Session() as session:
            session.proxies = {"http": base, "https": base}
            for host in (HOST, DEAD):
                for path in ("shared/by-proxy", "other"):
                    for scheme in ("http", "https"):
                        url = f"{scheme}://{host}/{path}?{QUERY}"
                        reply = session.get(url, headers=HEADERS, verify=bundle, timeout=10)
                        seen.append(f"{reply.status_code} {reply.headers}")
            session.get(f"http://u:{SENT}@{HOST}/shared/userinfo", timeout=10)
            session.proxies = {"http": f"http://u:{SENT}@127.0.0.1:{egress}"}
            session.get(f"http://{HOST}/shared/proxy-authorization?{QUERY}", timeout=10)

    async with aiohttp.ClientSession() as http:
        for policy in ("provider", "dead", "unknown"):
            for path in ("shared/by-base-url", "other"):
                async with http.get(f"{base}/{policy}/{path}?{QUERY}", headers=HEADERS) as reply:
                    seen.append(f"{reply.status} {reply.headers}")
        for path in ("/shared/ingress", "/slow"):
            async with http.get(f"{sidecar.url}{path}?{QUERY}", headers=HEADERS) as reply:
                seen.append(f"{reply.status} {reply.headers}")
        await asyncio.to_thread(through_the_proxy)
        for body in (
            {"url": f"http://{HOST}/shared/by-proxy?{QUERY}"},
            {"url": f"ftp://u:{SENT}@{HOST}/?{QUERY}"},
        ):
            async with http.post(f"{sidecar.admin}/admin/cache/purge", json=body) as reply:
                seen.append(f"{reply.status} {await reply.text()}")
        urls = {"urls": [f"http://127.0.0.1:{sidecar.port}/shared/warm?{QUERY}", f"ftp:x?key={SENT}"]}
        async with http.post(f"{sidecar.admin}/admin/cache/warm", json=urls) as reply:
            seen.append(f"{reply.status} {await reply.text()}")
    lines = (
        f"GET http://u:{SENT}@{HOST}/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        f"GET http://u:{SENT}@unlisted.example/x?key={SENT} HTTP/1.1\r\nHost: unlisted.example\r\n\r\n",
        f"CONNECT u:{SENT}@{HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        f"CONNECT {HOST}:99999?key={SENT} HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        f"GET /provider/\x01?key={SENT} HTTP/1.1\r\nHost: {HOST}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization\x00: Bearer {SENT}\r\n\r\n",
    )
    seen += [(await raw(egress, line)).decode("latin-1") for line in lines]
    return seen


async def pages(sidecar: Sidecar, http: aiohttp.ClientSession) -> list[str]:
    """What every page that the admin listener's own document lists shows; of a stream its first event."""
    async with http.get(sidecar.admin + "/openapi.json") as reply:
        document = await reply.json()
    shown = [str(document)]
    listed = [path for path, methods in document["paths"].items() if "get" in methods]
    assert {"/health/detailed", "/metrics", "/admin/config", "/admin/cache/stats"} < set(listed)
    for page in listed:
        async with http.get(sidecar.admin + page.replace("{id}", "none")) as reply:
            stream = reply.content_type == "text/event-stream"
            text = await (reply.content.readuntil(b"\n\n") if stream else reply.read())
            shown.append(text.decode("utf-8", "replace"))
    return shown


async def said(sidecar: Sidecar, command: str, *arguments: str) -> str:
    """What a command prints, in the sidecar's environment."""
    process = await asyncio.create_subprocess_exec(
        *sidecar.command[:3],
        command,
        *arguments,
        *(["-c"] if command != "check" else []),
        str(sidecar.folder / "sidecar.yaml"),
        env=sidecar.environment,
        cwd=sidecar.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    return (await process.communicate())[0].decode()


def stored(server: Valkey) -> bytes:
    """All keys and all values, as they are in the server."""
    parts: list[bytes] = []
    for key in server.stored():
        parts.append(key)
        for command in (("GET",), ("DUMP",), ("SMEMBERS",), ("HGETALL",)):
            try:
                reply = server.ask(*command, key)
            except OSError:
                continue
            parts.append(repr(reply).encode("latin-1", "replace"))
            if isinstance(reply, bytes):
                parts.append(reply)
    return b"\n".join(parts)


@pytest.mark.timeout(120)
async def test_no_key_is_left_anywhere(tmp_path: Path) -> None:
    """Keys in query, headers, cookies and userinfo, sent and injected, by every door: a search finds none.

    It looks through the log, `/metrics`, every page of the admin listener, answers to clients, keys and
    values of a real Valkey, the CA's folder, and what `doctor`, `explain`, `routes`, `check` and `ca` print.
    """
    app = TinyApp(tmp_path)
    with running() as server:
        sidecar = MarkedSidecar(tmp_path, app, cache={"redis": server.url})
        egress = sidecar.egress
        await app.start()
        await sidecar.start()
        await until_connects(egress)
        try:
            seen = await traffic(sidecar, egress)
            async with aiohttp.ClientSession() as http:
                seen += await pages(sidecar, http)
            examined = await said(sidecar, "doctor")
            assert HOST in examined
            seen.append(examined)
            await asyncio.sleep(0.3)  # the log is written in batches
            kept = stored(server)
        finally:
            await sidecar.end()
            await app.end(signal.SIGKILL)
    for command in (["explain", "GET", f"https://{HOST}/shared/x"], ["routes"], ["check"], ["ca"]):
        seen.append(await said(sidecar, *command))
    log = sidecar.output.read_text()
    assert log.count('"route":"provider-shared"') > 3
    assert log.count('"error":"connect_failed"') > 3
    assert b"by-proxy" in kept or b"by-base-url" in kept, "nothing was stored"
    places = {
        "log": log,
        "answers, admin pages and commands": "\n".join(seen),
        "valkey": kept.decode("latin-1"),
        "ca": "\n".join(file.read_text("latin-1") for file in (tmp_path / "ca").iterdir() if file.is_file()),
    }
    assert found(places) == []


@pytest.mark.timeout(60)
async def test_the_provider_gets_the_injected_key(tmp_path: Path) -> None:
    """Whatever the app sent under that name; and what the app asks for is stored under a key without it."""
    app = TinyApp(tmp_path)
    with running() as server:
        sidecar = MarkedSidecar(tmp_path, app, cache={"redis": server.url})
        egress = sidecar.egress
        await app.start()
        await sidecar.start()
        await until_connects(egress)
        try:
            async with aiohttp.ClientSession() as http:
                url = f"http://127.0.0.1:{egress}/provider/echo?key=dummy&a=b"
                async with http.get(url, headers={"X-Injected": "dummy"}) as reply:
                    told = await reply.json()
        finally:
            await sidecar.end()
            await app.end(signal.SIGKILL)
    assert told["target"] == f"/echo?a=b&key={INJECTED}"
    assert told["headers"]["x-injected"] == INJECTED

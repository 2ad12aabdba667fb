"""`security_headers` of a real process: which answers of ingress carry what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import yaml

from tests.support.processes import Sidecar, TinyApp

HARDENED = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"}
HSTS = "Strict-Transport-Security"
YEAR = "max-age=31536000; includeSubDomains"
POLICY = {
    "name": "tiny",
    "routes": [
        {"name": "shared", "match": {"path": "/shared/*"}, "cache": {"ttl": "1m"}},
        {"name": "broken", "match": {"path": "/broken"}, "fault": {"reset": True}},
        {
            "name": "framed",
            "match": {"path": "/framed"},
            "respond": {
                "status": 200,
                "headers": {"x-frame-options": "SAMEORIGIN", "strict-transport-security": "max-age=1"},
                "text": "within our own pages",
            },
        },
    ],
}


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    """Its clients stand where trusted proxies do."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(
        tmp_path,
        app.port,
        POLICY,
        security_headers="on",
        expose=["/health/live"],
        trusted={"proxies": ["127.0.0.1/32"]},
    )
    await app.start()
    await sidecar.start()
    yield sidecar
    await sidecar.end()
    await app.end()


async def head(sidecar: Sidecar, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    """Status and, by their names, the fields in question."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, sidecar.url + path, headers=sent) as reply,
    ):
        await reply.read()
        found = [(name, value) for name in (*HARDENED, HSTS) for value in reply.headers.getall(name, ())]
        assert len(found) == len(dict(found)), f"{path} says one of them twice"
        return reply.status, dict(found)


async def test_every_answer_has_them(sidecar: Sidecar) -> None:
    """The app's, one from the cache, errors of the sidecar's own, exposed pages, and what was no request."""
    for method, path, status in (
        ("GET", "/any", 200),
        ("HEAD", "/any", 200),
        ("GET", "/stream/100000", 200),
        ("GET", "/shared/a", 200),
        ("GET", "/shared/a", 200),
        ("GET", "/broken", 502),
        ("GET", "/health/live", 200),
    ):
        assert await head(sidecar, method, path) == (status, HARDENED), path
    assert (await sidecar.metrics())['nextvision_cache_operations_total{outcome="hit",route="shared"}'] == 1
    reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")  # without Host
    refusal = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    writer.close()
    assert refusal.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nX-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\n" in refusal


async def test_what_an_answer_says_itself_stays(sidecar: Sidecar) -> None:
    """Only what it lacks is added."""
    assert await head(sidecar, "GET", "/framed", X_Forwarded_Proto="https") == (
        200,
        {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "SAMEORIGIN", HSTS: "max-age=1"},
    )


async def test_hsts_is_said_over_https_alone(sidecar: Sidecar) -> None:
    """As the proxy nearest to the client has it; a hit too, whatever scheme filled the cache."""
    for proto, secure in (
        ("https", True),
        ("HTTPS", True),
        ("https, http", True),
        ("http, https", False),
        ("http", False),
        ("httpsx", False),
    ):
        status, found = await head(sidecar, "GET", "/shared/hsts", X_Forwarded_Proto=proto)
        assert status == 200
        assert found == (HARDENED | {HSTS: YEAR} if secure else HARDENED), proto


async def test_who_is_not_trusted_is_not_believed(sidecar: Sidecar) -> None:
    """A client that says https of itself gets no HSTS; a reload takes trust, and all the headers, away."""
    file = sidecar.folder / "sidecar.yaml"
    config = yaml.safe_load(file.read_text())

    async def reloaded(**settings: object) -> None:
        file.write_text(yaml.safe_dump(config | settings))
        async with aiohttp.ClientSession() as http, http.post(sidecar.admin + "/admin/reload") as reply:
            assert (await reply.json())["restart_needed"] == []

    await reloaded(trusted={"proxies": []})
    assert await head(sidecar, "GET", "/any", X_Forwarded_Proto="https") == (200, HARDENED)
    await reloaded(security_headers="off")
    assert await head(sidecar, "GET", "/any", X_Forwarded_Proto="https") == (200, {})

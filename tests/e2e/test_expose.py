"""Pages of the admin listener on ingress, and `metrics.enabled`, of a real process."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.support.processes import Sidecar, TinyApp, total, until_connects


async def test_exposed_pages_are_answered_on_ingress(tmp_path: Path) -> None:
    """To GET and HEAD, in place of the app's, and without counting; other paths and methods go to the app."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(
        tmp_path, app.port, expose=["/health", "/metrics", "/monitoring/performance", "/monitoring/system"]
    )
    await app.start()
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    try:
        async with aiohttp.ClientSession(sidecar.url) as http:
            async with http.get("/health") as reply:
                assert reply.status == 200
                assert (await reply.json())["status"] in ("healthy", "degraded", "unhealthy")
            async with http.head("/health") as reply:
                assert reply.status == 200
                assert reply.content_type == "application/json"
            async with http.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as reply:
                assert (await reply.text()).endswith("# EOF\n")
            async with http.get("/monitoring/system") as reply:
                figures = await reply.json()
                assert figures["process"]["resident_bytes"] > 1 << 20
                assert figures["cpu"]["count"] >= 1
                assert figures["event_loop"]["lag_max_ms"] >= 0
            async with http.get("/monitoring/performance") as reply:
                assert "1m" in await reply.text()
            async with http.get("/health/ready") as reply:
                assert await reply.json() == {"path": "/health/ready"}
            async with http.post("/health") as reply:
                assert await reply.json() == {"path": "/health"}
        assert total(await sidecar.metrics(), "nextvision_api_requests_total") == 2
    finally:
        await sidecar.end()
        await app.end()


async def test_metrics_can_be_turned_off(tmp_path: Path) -> None:
    """`PROMETHEUS_ENABLED=false` leaves a 404 that says so."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port)
    sidecar.environment["PROMETHEUS_ENABLED"] = "false"
    await app.start()
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    try:
        async with aiohttp.ClientSession() as http, http.get(sidecar.admin + "/metrics") as reply:
            assert reply.status == 404
            assert "PROMETHEUS_ENABLED" in (await reply.json(content_type=None))["detail"]
    finally:
        await sidecar.end()
        await app.end()


@pytest.mark.system
async def test_promtool_finds_nothing_wrong_with_the_metrics(tmp_path: Path) -> None:
    """`promtool check metrics` takes the page after traffic, and has no advice."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port)
    await app.start()
    await sidecar.start()
    await until_connects(sidecar.admin_port)
    try:
        async with aiohttp.ClientSession() as http:
            for path in ("/a", "/slow", "/shared/b"):
                async with http.get(sidecar.url + path) as reply:
                    assert reply.status == 200
            async with http.get(sidecar.admin + "/metrics") as reply:
                page = await reply.read()
    finally:
        await sidecar.end()
        await app.end()
    checked = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")

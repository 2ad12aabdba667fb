"""Faults and the decision trail as an operator uses them: a sidecar process, its admin listener, its log."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sidecar.decisions.trail import parse
from tests.support.processes import Sidecar, TinyApp, total

TOKEN = "open sesame"
POLICIES = {
    "name": "tiny",
    "defaults": {"deadline": "5s"},
    "routes": [
        {
            "name": "sized",
            "match": {"method": "GET", "path": "/bytes/*"},
            "circuit_breaker": {"consecutive": 2, "open_for": "1s", "half_open_probes": 1},
        },
        {"name": "shared", "match": {"path": "/shared/*"}, "cache": {"ttl": "1m"}},
    ],
}


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    app = TinyApp(tmp_path)
    await app.start()
    settings: dict[str, Any] = {"admin": {"token": TOKEN}, "environment": "testing"}
    sidecar = Sidecar(tmp_path, app.port, POLICIES, **settings)
    await sidecar.start()
    yield sidecar
    for program in (sidecar, app):
        if program.process is not None and program.process.returncode is None:
            await program.end()


async def act(sidecar: Sidecar, order: dict[str, Any], token: str = TOKEN) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {token}"}
    url = sidecar.admin + "/admin/faults"
    async with aiohttp.ClientSession(headers=headers) as http, http.post(url, json=order) as reply:
        return reply.status, await reply.json(content_type=None)


async def ask(sidecar: Sidecar, path: str) -> tuple[int, str]:
    """The status, and the trail without its time."""
    headers = {"X-Sidecar-Debug": "1"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(sidecar.url + path) as reply:
        trail = reply.headers["Sidecar-Decision"]
        assert parse(trail.encode()) is not None
        return reply.status, trail.rpartition(", ")[0]


async def health(sidecar: Sidecar) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(sidecar.admin + "/health/detailed") as reply:
        return dict(await reply.json())


async def test_a_fault_set_while_it_serves(sidecar: Sidecar) -> None:
    """It hits real requests at once, opens the breaker, shows in trail, log, health and metrics, and ends."""
    usual = "deadline;ok, circuit_breaker;closed, attempt_timeout;ok, upstream;status=200, classify;ok"
    assert await ask(sidecar, "/bytes/10") == (200, usual)

    order = {"route": "sized", "fault": {"reset": True}, "expires": "1m"}
    assert (await act(sidecar, order, token="wrong"))[0] == 401
    assert (await act(sidecar, order))[0] == 200
    hit = f"{usual.partition(', upstream')[0]}, fault;reset, upstream;error=upstream_reset, "
    assert [await ask(sidecar, "/bytes/10") for _ in range(2)] == [(502, hit + "classify;transient")] * 2
    assert await ask(sidecar, "/bytes/10") == (503, "deadline;ok, circuit_breaker;rejected")
    report = await health(sidecar)
    assert (report["status"], report["ready"]) == ("degraded", True)
    assert report["checks"]["faults"]["active"] == ["route sized"]

    assert (await act(sidecar, {"route": "sized", "fault": "off"}))[1]["cleared"] == 1
    await asyncio.sleep(1.1)
    assert (await ask(sidecar, "/bytes/10"))[0] == 200
    assert "faults" not in (await health(sidecar))["checks"]
    assert (
        total(await sidecar.metrics(), "nextvision_faults_injected_total", route="sized", kind="reset") == 2
    )

    await sidecar.end(signal.SIGTERM)
    acts = [line["message"] for line in sidecar.log() if line["logger"] == "sidecar.admin"]
    # The first is the one with the wrong token.
    assert acts == ["admin act", "fault set", "fault cleared"]
    trails = [line["trail"] for line in sidecar.requests()]
    assert trails[0] == usual
    assert trails[1:4] == [hit + "classify;transient"] * 2 + ["deadline;ok, circuit_breaker;rejected"]


async def test_it_ends_by_itself(sidecar: Sidecar) -> None:
    """Nobody has to be there when it does."""
    started = time.monotonic()
    order = {"upstream": "app", "fault": {"delay": "50ms"}, "expires": "600ms"}
    assert (await act(sidecar, order))[0] == 200
    assert "fault;delay=0.050" in (await ask(sidecar, "/bytes/10"))[1]
    while "fault" in (await ask(sidecar, "/bytes/10"))[1]:
        assert time.monotonic() - started < 5
    assert time.monotonic() - started > 0.5


async def test_the_trail_of_a_crowd(sidecar: Sidecar) -> None:
    """A hit, a fill and those who joined it each tell their own story."""
    assert (await act(sidecar, {"route": "shared", "fault": {"delay": "300ms"}, "expires": "1m"}))[0] == 200
    answers = await asyncio.gather(*(ask(sidecar, "/shared/cold") for _ in range(5)))
    trails = sorted(trail for _, trail in answers)
    assert trails[:4] == ["cache;collapsed;status=200"] * 4
    filled = (
        "cache;miss, deadline;ok, attempt_timeout;ok, fault;delay=0.300, upstream;status=200, classify;ok"
    )
    assert trails[4] == filled
    assert await ask(sidecar, "/shared/cold") == (200, "cache;hit;status=200")

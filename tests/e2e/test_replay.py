"""`sidecar replay` predicts what really happens: logs of real traffic, replayed, beside real counts."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes import Sidecar, TinyApp, total

ROUNDS = 7
PERIOD = 0.5
"""Seconds from round to round: half a period lies between any of them and the end of a lifetime."""


def policies(ttl: str) -> dict[str, Any]:
    return {
        "name": "site",
        "defaults": {"retry": {"attempts": 2, "backoff": {"base": "20ms", "max": "20ms"}, "budget": "off"}},
        "routes": [
            {"name": "items", "match": {"method": "GET", "path": "/items/*"}, "cache": {"ttl": ttl}},
            {
                "name": "questions",
                "match": {"method": "POST", "path": "/ask"},
                "cache": {"ttl": ttl, "methods": ["POST"], "key": {"body": "json"}},
            },
            {"name": "stated", "match": {"path": "/shared/*"}, "cache": {"ttl": ttl}},
            {"name": "broken", "match": {"path": "/redirect"}},
        ],
    }


async def one_round(http: aiohttp.ClientSession, url: str) -> None:
    async def ask(method: str, path: str, **more: Any) -> None:
        async with http.request(method, url + path, allow_redirects=False, **more) as reply:
            await reply.read()

    await asyncio.gather(
        *(ask("GET", f"/items/{number}") for number in range(12)),
        *(ask("POST", "/ask", json={"question": number, "round": "any"}) for number in range(6)),
        *(ask("GET", f"/shared/{number}") for number in range(4)),
        *(ask("GET", "/redirect?status=503&to=/") for _ in range(2)),
    )


async def traffic(folder: Path, ttl: str) -> tuple[Path, dict[str, float]]:
    """The same load under a lifetime; the configuration, and what `/metrics` then says."""
    app = TinyApp(folder)
    sidecar = Sidecar(folder, app.port, policies(ttl), logging={"file": "access.log", "format": "json"})
    await app.start()
    await sidecar.start()
    async with aiohttp.ClientSession() as http:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(ROUNDS):
            await asyncio.sleep(max(began + number * PERIOD - loop.time(), 0))
            await one_round(http, sidecar.url)
    metrics = await sidecar.metrics()
    assert await sidecar.end() == 0
    await app.end()
    return folder / "sidecar.yaml", metrics


def counted(metrics: dict[str, float]) -> tuple[float, float]:
    """Hit ratio and upstream calls."""
    name = "nextvision_api_requests_total"
    requests = sum(total(metrics, name, route=route) for route in ("items", "questions", "stated"))
    hits = sum(
        total(metrics, "nextvision_cache_hit_rate", route=route) * total(metrics, name, route=route)
        for route in ("items", "questions", "stated")
    )
    return hits / requests, total(metrics, "nextvision_upstream_attempts_total", upstream="app")


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_replay_predicts_hit_ratio_and_calls_within_3_percent(tmp_path: Path) -> None:
    """Of the log of one lifetime: what happened under it, and what then happens under another."""
    for name in ("short", "long"):
        (tmp_path / name).mkdir()
    short, there = await traffic(tmp_path / "short", "750ms")
    long, here = await traffic(tmp_path / "long", "1750ms")
    done = await asyncio.to_thread(
        subprocess.run,
        [
            *(sys.executable, "-m", "sidecar", "replay", str(short.parent / "access.log")),
            *("-c", str(short), "--against", str(long), "--json", str(tmp_path / "replay.json")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "replay.json").read_text("utf-8"))["results"]
    assert results[0]["total"]["requests"] == ROUNDS * 24
    for result, metrics in zip(results[1:], (there, here), strict=True):
        ratio, calls = counted(metrics)
        assert result["total"]["hit_ratio"] == pytest.approx(ratio, rel=0.03)
        assert result["total"]["upstream_calls"] == pytest.approx(calls, rel=0.03)
        assert result["total"]["retries"] == total(metrics, "nextvision_retries_total")
    # The two differ by far more than the prediction may.
    assert counted(there)[1] > 1.2 * counted(here)[1]

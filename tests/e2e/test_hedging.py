"""Real processes, real time: what hedges do to the slowest answers, and what they cost the upstream."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import aiohttp
import pytest

from tests.support.origin import OK, Origin, OriginConnection
from tests.support.processes import Sidecar, total

PER_SECOND = 150
SECONDS = 6.0
QUICK, SLOW = 0.005, 0.5
"""Seconds that answers take; 3 in 100 are slow."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


async def sometimes_slow(connection: OriginConnection) -> None:
    while await connection.request() is not None:
        await asyncio.sleep(SLOW if len(connection.origin.requests) % 33 == 0 else QUICK)
        await connection.send(OK)


async def percentile_99(folder: Path, **retry: Any) -> tuple[float, float, dict[str, float]]:
    """Seconds of the 99th percentile, requests at the upstream for each, and the sidecar's metrics."""
    async with Origin(sometimes_slow, record=False) as origin:
        route = {"name": "all", "retry": {"attempts": 2, **retry}}
        sidecar = Sidecar(folder, origin.address.port, {"name": "hedging", "routes": [route]})
        await sidecar.start()
        took: list[float] = []

        async def client(http: aiohttp.ClientSession, intended: float) -> None:
            async with http.get(sidecar.url) as answer:
                assert await answer.read() == b"ok"
            took.append(time.monotonic() - intended)

        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
                start = time.monotonic()
                clients = []
                for number in range(int(PER_SECOND * SECONDS)):
                    intended = start + number / PER_SECOND
                    await asyncio.sleep(intended - time.monotonic())
                    clients.append(asyncio.create_task(client(http, intended)))
                await asyncio.gather(*clients)
            metrics = await sidecar.metrics()
        finally:
            await sidecar.end()
        return quantiles(took, n=100)[98], len(origin.requests) / len(took), metrics


async def test_hedges_cut_the_tail(tmp_path: Path) -> None:
    """p99 falls from that of a slow answer to a fraction of it, for a few requests more."""
    for name in ("plain", "hedged"):
        (tmp_path / name).mkdir()
    plain, once, _ = await percentile_99(tmp_path / "plain")
    hedged, more, metrics = await percentile_99(tmp_path / "hedged", hedge={"after": "p95"})
    sys.stdout.write(
        f"p99 {plain * 1000:.0f} ms, {hedged * 1000:.0f} ms with {more:.3f} attempts a request\n"
    )
    assert once == 1.0
    assert plain > SLOW
    assert hedged < SLOW / 2
    assert more < 1.2, "the budget"
    assert total(metrics, "nextvision_hedges_total", outcome="won") > 0

"""Real processes, real time: what an upstream that fails always sees of 200 requests a second.

`STORM_SECONDS=60` runs each storm for as long as the promise says; here it is a few seconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.origin import Origin, answers
from tests.support.processes import Sidecar, total

SECONDS = float(os.environ.get("STORM_SECONDS", "4"))
PER_SECOND = 200
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
RETRY = {"attempts": 3, "budget": {"ratio": "20%", "min_per_second": 1}}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 4 * SECONDS)]


class Storm:
    """An upstream that fails always, and the sidecar before it."""

    def __init__(self, origin: Origin, folder: Path) -> None:
        self.origin = origin
        self.folder = folder
        self.arrived = 0
        """Requests at the sidecar."""

    @property
    def ratio(self) -> float:
        """Requests at the upstream for each at the sidecar."""
        return len(self.origin.requests) / self.arrived

    async def blow(self, *retries: int, **policies: Any) -> dict[str, float]:
        """A client comes every 5 ms, late or not; it makes a request for each number of its own retries.

        Returns the sidecar's metrics.
        """
        route = {"name": "all", "deadline": "30s", "retry": RETRY, **policies}
        sidecar = Sidecar(self.folder, self.origin.address.port, {"name": "storm", "routes": [route]})
        await sidecar.start()
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
                clients = []
                start = time.monotonic()
                for number in range(int(PER_SECOND * SECONDS)):
                    await asyncio.sleep(start + number / PER_SECOND - time.monotonic())
                    clients.append(asyncio.create_task(self._client(http, sidecar.url, retries)))
                await asyncio.gather(*clients)
            metrics = await sidecar.metrics()
        finally:
            await sidecar.end()
        assert total(metrics, "nextvision_api_requests_total") == self.arrived
        sys.stdout.write(
            f"{self.arrived} requests, {len(self.origin.requests)} at the upstream: {self.ratio:.3f}\n"
        )
        return metrics

    async def _client(self, http: aiohttp.ClientSession, url: str, retries: tuple[int, ...]) -> None:
        for count in retries:
            self.arrived += 1
            async with http.get(url, headers={"x-stainless-retry-count": str(count)}) as answer:
                assert answer.status == 503
                await answer.read()


@pytest.fixture
async def storm(tmp_path: Path) -> AsyncIterator[Storm]:
    async with Origin(answers(UNAVAILABLE), record=False) as origin:
        yield Storm(origin, tmp_path)


async def test_retries_add_a_fifth(storm: Storm) -> None:
    """Breaker off: 1.1 to 1.25 times what arrives, and the metrics say what was skipped and why."""
    metrics = await storm.blow(0)
    assert 1.1 <= storm.ratio <= 1.25
    assert total(metrics, "nextvision_retries_skipped_total", reason="budget") > 0
    retries = total(metrics, "nextvision_retries_total")
    assert retries == len(storm.origin.requests) - storm.arrived


async def test_the_breaker_keeps_it_away(storm: Storm) -> None:
    """Breaker on: at most a fifth of what arrives."""
    await storm.blow(0, circuit_breaker={})
    assert storm.ratio <= 0.2


async def test_clients_that_retry(storm: Storm) -> None:
    """Each client tries three times and says so: only its first try is ever repeated here."""
    metrics = await storm.blow(0, 1, 2)
    assert 1.0 < storm.ratio <= 1.25
    assert (
        total(metrics, "nextvision_retries_skipped_total", reason="client-retries") == storm.arrived * 2 / 3
    )

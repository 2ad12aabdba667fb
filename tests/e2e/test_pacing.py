"""A quota kept in earnest: `sidecar run` between clients and a provider that counts, each a process."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.processes import ROOT, Program, Sidecar, free_port, total, until_connects

LIMIT, WINDOW = 100, 10.0
"""Ten requests a second, as the provider counts them."""
BATCH = 220
EVERY = 1.0
"""Seconds between two interactive requests."""
BODY = {"model": "gpt-4", "messages": [{"role": "user", "content": "Lis ce CV"}]}
POLICY = {
    "name": "openai",
    "routes": [
        {
            "name": "chat",
            "match": {"method": "POST", "path": "/v1/chat/completions"},
            "retry": {"attempts": 3, "methods": ["POST"]},
            "pace": {"patience": "5s", "batch_patience": "1m"},
        }
    ],
}


class Providers(Program):
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        script = str(ROOT / "examples" / "providers.py")
        super().__init__([sys.executable, script, "--port", str(self.port)], folder / "providers.out")

    async def start(self) -> None:
        await super().start()
        await until_connects(self.port)


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    """A sidecar in front of the fake OpenAI, which has a quota."""
    providers = Providers(tmp_path)
    await providers.start()
    sidecar = Sidecar(tmp_path, providers.port, POLICY)
    await sidecar.start()
    yield sidecar
    await sidecar.end()
    await providers.end()


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_quota_is_used_and_interactive_requests_do_not_wait(sidecar: Sidecar) -> None:
    """220 batch requests wait for ten a second: no 429 for anybody, and hardly a wait for the others."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(sidecar.url, connector=connector) as http:
        quota = {"openai": {"quota": {"requests": LIMIT, "seconds": WINDOW}}}
        async with http.post("/_switch", json=quota) as reply:
            assert reply.status == 200
        began = time.monotonic()
        served: list[float] = []
        statuses: set[int] = set()

        async def ask(**headers: str) -> float:
            asked = time.monotonic()
            headers["Authorization"] = "Bearer k"
            async with http.post("/v1/chat/completions", json=BODY, headers=headers) as reply:
                await reply.read()
            served.append(time.monotonic() - began)
            statuses.add(reply.status)
            return time.monotonic() - asked

        batch = [asyncio.ensure_future(ask(Priority="u=7")) for _ in range(BATCH)]
        interactive = []
        while not all(request.done() for request in batch):
            interactive.append(asyncio.ensure_future(ask()))
            await asyncio.sleep(EVERY)
        await asyncio.gather(*batch)
        seconds = sorted(await asyncio.gather(*interactive))
        async with http.get("/_calls") as reply:
            calls = (await reply.json())["openai"]
        metrics = await sidecar.metrics()
    full = int(max(served) // WINDOW)
    used = sum(at < full * WINDOW for at in served) / (full * LIMIT)
    p95 = seconds[int(len(seconds) * 0.95)]
    assert statuses == {200}
    assert calls == {"chat": len(served), "refused": 0}
    assert full >= 2
    assert used >= 0.95
    assert p95 < 2.0
    assert total(metrics, "nextvision_pace_wait_seconds_count", upstream="app") >= BATCH - 1

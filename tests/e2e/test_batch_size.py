"""A batch of 100,000 lines: what it takes in memory and how fast it goes. `BATCH_LINES` asks for as many."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import psutil
import pytest

from tests.support.batches import BatchClient, CountingApp, batch_sidecar, jobs, started

LINES = int(os.environ.get("BATCH_LINES", "4000"))
PATIENCE = 120.0 + LINES / 200
GROWTH = 50 << 20
PIECE = 1000
ANSWER = {"respond": {"status": 200, "json": {"done": True}}}


@pytest.mark.timeout(PATIENCE)
async def test_memory_does_not_grow_with_the_batch(tmp_path: Path) -> None:
    """Submitting, running and reading results grows the process by at most 50 MB, however many lines."""
    async with CountingApp() as app:
        policies = {"name": "own", "routes": [{"name": "own", "match": {"path": "/jobs/*"}, **ANSWER}]}
        sidecar = batch_sidecar(tmp_path, app, policies=policies, logging={"access": False})
        await started(sidecar)
        process = psutil.Process(sidecar.pid)

        async def lines() -> AsyncIterator[bytes]:
            for start in range(0, LINES, PIECE):
                yield many(start)

        try:
            async with BatchClient(sidecar) as client:
                await client.results(await client.accepted(jobs(500, "GET")))
                before = peak = process.memory_info().rss
                began = monotonic()
                watching = True

                async def watch() -> None:
                    nonlocal peak
                    while watching:
                        peak = max(peak, process.memory_info().rss)
                        await asyncio.sleep(0.02)

                watcher = asyncio.ensure_future(watch())
                batch = await client.accepted(lines())
                accepted = monotonic()
                seen = set()
                async with client.http.get(f"/batches/{batch}/results", timeout=None) as reply:
                    async for line in reply.content:
                        seen.add(json.loads(line)["custom_id"])
                ended = monotonic()
                watching = False
                await watcher
            print(  # noqa: T201 - a figure for whoever asks with -s
                f"{LINES} lines: +{(peak - before) / 1e6:.1f} MB, accepted after {accepted - began:.1f} s,"
                f" {LINES / (ended - accepted):.0f} lines/s"
            )
            assert len(seen) == LINES
            assert peak - before < GROWTH
        finally:
            await sidecar.end(signal.SIGKILL)


def many(start: int) -> bytes:
    return b"".join(
        b'{"custom_id": "%d", "method": "GET", "url": "/jobs/%d"}\n' % (number, number)
        for number in range(start, min(start + PIECE, LINES))
    )

"""Batches in a real Valkey: each line has one result, whatever dies; replicas share the work."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.batches import (
    BatchClient,
    CountingApp,
    batch_sidecar,
    jobs,
    serving,
    started,
)
from tests.support.harness import eventually
from tests.support.processes import Sidecar
from tests.support.valkey import Valkey, running


@pytest.fixture
async def app() -> AsyncIterator[CountingApp]:
    async with CountingApp() as app:
        yield app


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
async def sidecar(tmp_path: Path, app: CountingApp, valkey: Valkey) -> AsyncIterator[Sidecar]:
    settings = {"batch": {"store": valkey.url}, "logging": {"access": False}, "limits": {"drain": "4s"}}
    made = batch_sidecar(tmp_path, app, **settings)
    async with serving(made):
        yield made


@pytest.fixture
async def client(sidecar: Sidecar) -> AsyncIterator[BatchClient]:
    async with BatchClient(sidecar) as made:
        yield made


async def test_the_server_dies_in_the_middle(
    client: BatchClient, app: CountingApp, valkey: Valkey, sidecar: Sidecar
) -> None:
    """SIGKILL of Valkey: health says so; the batch goes on by itself, no line is lost or sent twice."""
    app.seconds = 0.01
    batch = await client.accepted(jobs(1500, "GET", "POST"), max_concurrency="5")
    await client.until(batch, lambda shown: shown["counts"]["completed"] > 50)
    valkey.kill()
    async with asyncio.timeout(20):
        while True:
            async with client.http.get("/health/detailed") as reply:
                check = (await reply.json())["checks"]["batch"]
            if check["status"] == "degraded":
                break
            await asyncio.sleep(0.05)
    assert check["required"] is False
    valkey.start()
    await eventually(lambda: valkey.ask("PING") == b"PONG", "it loads its file")
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(1500)}
    assert {it["status"] for it in results} == {200}
    assert set(app.calls.values()) == {1}
    assert await sidecar.end() == 0


async def test_stopped_while_its_server_is_frozen(
    sidecar: Sidecar, client: BatchClient, app: CountingApp, valkey: Valkey
) -> None:
    """SIGTERM ends the sidecar within its drain time; once Valkey goes on, the next start ends the batch."""
    app.seconds = 0.02
    batch = await client.accepted(jobs(600, "GET"), max_concurrency="5")
    await client.until(batch, lambda shown: shown["counts"]["completed"] > 50)
    valkey.freeze()
    began = time.monotonic()
    assert await sidecar.end() == 0
    assert time.monotonic() - began < 4 + 3
    valkey.thaw()
    await started(sidecar)
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(600)}
    assert {it["status"] for it in results} == {200}

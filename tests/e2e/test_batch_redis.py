"""Batches in a real Valkey: each line has one result, whatever dies; replicas share the work."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.batches import (
    KILLS,
    BatchClient,
    CountingApp,
    batch_sidecar,
    jobs,
    killed_and_resumed,
    shared_by_two,
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
    await started(made)
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.end(signal.SIGKILL)


@pytest.fixture
async def client(sidecar: Sidecar) -> AsyncIterator[BatchClient]:
    async with BatchClient(sidecar) as made:
        yield made


@pytest.mark.timeout(60 + 20 * KILLS)
async def test_killed_and_resumed(sidecar: Sidecar, client: BatchClient, app: CountingApp) -> None:
    """SIGKILL of the sidecar at random moments: one result a line, what is unsafe is never sent twice."""
    await killed_and_resumed(sidecar, client, app, KILLS)


async def test_two_sidecars_share_a_batch(tmp_path: Path, app: CountingApp, valkey: Valkey) -> None:
    """Both work on it; one is killed, and the other ends it: one result a line, no POST sent twice."""
    await shared_by_two(tmp_path, app, valkey.url)


async def test_what_was_not_acknowledged_is_not_there(sidecar: Sidecar, client: BatchClient) -> None:
    """A submission during which the sidecar is killed leaves nothing; one that was acknowledged is whole."""
    sent = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield jobs(3000, "GET")
        sent.set()
        await asyncio.sleep(30)

    submitting = asyncio.ensure_future(client.submit(endless()))
    await asyncio.wait_for(sent.wait(), 10)
    await sidecar.end(signal.SIGKILL)
    with pytest.raises(aiohttp.ClientError):
        await submitting
    await started(sidecar)
    batch = await client.accepted(jobs(300, "GET"))
    async with client.http.get("/batches") as reply:
        assert [it["id"] for it in (await reply.json())["batches"]] == [batch]
    await sidecar.end(signal.SIGKILL)
    await started(sidecar)
    assert len(await client.results(batch)) == 300


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

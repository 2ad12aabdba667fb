"""What is promised of batches wherever they are kept: a SQLite file, or a real Valkey."""

from __future__ import annotations

import asyncio
import signal
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
from tests.support.processes import Sidecar
from tests.support.valkey import running


@pytest.fixture(params=["sqlite", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'shared.db'}"
        return
    with running("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server.url


@pytest.fixture
async def app() -> AsyncIterator[CountingApp]:
    async with CountingApp() as app:
        yield app


@pytest.fixture
async def sidecar(tmp_path: Path, app: CountingApp, store: str) -> AsyncIterator[Sidecar]:
    made = batch_sidecar(tmp_path, app, batch={"store": store}, logging={"access": False})
    await started(made)
    yield made
    await made.end(signal.SIGKILL)


@pytest.mark.timeout(60 + 20 * KILLS)
async def test_killed_and_resumed(sidecar: Sidecar, app: CountingApp) -> None:
    """SIGKILL at random moments: one result a line; what is unsafe to repeat is never sent twice, and where
    nobody knows whether it was done the result says so.
    """
    async with BatchClient(sidecar) as client:
        await killed_and_resumed(sidecar, client, app, KILLS)


async def test_what_was_not_acknowledged_is_not_there(sidecar: Sidecar) -> None:
    """A submission during which the sidecar is killed leaves nothing; one that was acknowledged is whole."""
    sent = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield jobs(3000, "GET")
        sent.set()
        await asyncio.sleep(30)

    async with BatchClient(sidecar) as client:
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
        assert (await client.show(batch))["counts"]["total"] == 300
        assert len(await client.results(batch)) == 300


async def test_two_sidecars_share_a_batch(tmp_path: Path, app: CountingApp, store: str) -> None:
    """Both work on it; one is killed, and the other ends it: one result a line, no POST sent twice."""
    await shared_by_two(tmp_path, app, store)

"""Batches on a file system that is really full: a tmpfs of the test's own, which only root may mount."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.batches import BatchClient, CountingApp, batch_sidecar, jobs, ndjson, serving, started
from tests.support.processes import Sidecar

SIZE = 64 << 20
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
async def app() -> AsyncIterator[CountingApp]:
    async with CountingApp() as app:
        yield app


@pytest.fixture
async def sidecar(tmp_path: Path, disk: Path, app: CountingApp) -> AsyncIterator[Sidecar]:
    made = batch_sidecar(
        tmp_path, app, batch={"store": f"sqlite:{disk / 'batch.db'}"}, logging={"access": False}
    )
    async with serving(made):
        yield made


@pytest.fixture
async def client(sidecar: Sidecar) -> AsyncIterator[BatchClient]:
    async with BatchClient(sidecar) as made:
        yield made


def fill(disk: Path) -> Path:
    """Takes all the room that is left."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (64 << 10, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass
    assert os.statvfs(disk).f_bavail == 0
    return filler


async def test_what_does_not_fit_is_refused(client: BatchClient, app: CountingApp) -> None:
    """A submission that the disk has no room for is 507 with the mend, and leaves nothing; what is there goes
    on, and what fits is accepted afterwards.
    """
    app.seconds = 0.05
    batch = await client.accepted(jobs(200, "GET"))
    large = {"custom_id": "", "method": "POST", "url": "/jobs/large", "body": "x" * 100_000}
    for _ in range(2):
        status, answer = await client.submit(ndjson({**large, "custom_id": f"{n}"} for n in range(800)))
        assert status == 507
        assert "free some of the disk" in answer["detail"]
    assert len(await client.results(batch)) == 200
    async with client.http.get("/batches") as reply:
        assert [it["id"] for it in (await reply.json())["batches"]] == [batch]
    assert len(await client.results(await client.accepted(jobs(200, "GET")))) == 200


async def test_a_batch_pauses_while_there_is_no_room(
    client: BatchClient, app: CountingApp, sidecar: Sidecar, disk: Path
) -> None:
    """Once the disk is full a batch pauses, and says why; with room it goes on by itself: each line is sent
    once and has one result.
    """
    app.seconds = 0.01
    app.padding = 1000
    batch = await client.accepted(jobs(1500, "GET", "POST"))
    await client.until(batch, lambda shown: shown["counts"]["completed"] > 50)
    filler = fill(disk)
    shown = await client.until(batch, lambda shown: shown["status"] == "paused")
    assert "no room" in shown["reason"]
    status, answer = await client.submit(jobs(3, "GET"))
    assert status == 507, answer
    filler.unlink()
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(1500)}
    assert {it["status"] for it in results} == {200}
    assert set(app.calls.values()) == {1}


async def test_room_comes_from_deleting(client: BatchClient, app: CountingApp, disk: Path) -> None:
    """Where batches themselves have filled the disk an old one can be deleted, and the others go on."""
    app.padding = 100_000
    old = await client.accepted(jobs(300, "GET"))
    assert len(await client.results(old)) == 300
    app.calls.clear()
    batch = await client.accepted(jobs(400, "GET"))
    await client.until(batch, lambda shown: shown["status"] == "paused")
    async with client.http.delete(f"/batches/{old}") as reply:
        assert reply.status == 200, await reply.text()
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(400)}
    assert set(app.calls.values()) == {1}


async def test_killed_on_a_full_disk(
    client: BatchClient, app: CountingApp, sidecar: Sidecar, disk: Path
) -> None:
    """A sidecar that is killed while its disk is full starts again, and ends the batch once there is room."""
    app.seconds = 0.01
    app.padding = 1000
    batch = await client.accepted(jobs(1000, "GET"))
    await client.until(batch, lambda shown: shown["counts"]["completed"] > 50)
    filler = fill(disk)
    await client.until(batch, lambda shown: shown["status"] == "paused")
    await sidecar.end(signal.SIGKILL)
    await started(sidecar)
    filler.unlink()
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(1000)}
    assert {it["status"] for it in results} == {200}

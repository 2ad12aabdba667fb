"""`sidecar batch` as its user runs it, against a real sidecar."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.batch_client import Progress, line_of
from tests.support.batches import BatchClient, CountingApp, batch_sidecar, jobs, started
from tests.support.clock import ManualClock
from tests.support.processes import ROOT, Sidecar

TOKEN = "open sesame"


@pytest.fixture
async def app() -> AsyncIterator[CountingApp]:
    async with CountingApp() as app:
        yield app


@pytest.fixture
async def sidecar(tmp_path: Path, app: CountingApp) -> AsyncIterator[Sidecar]:
    made = batch_sidecar(tmp_path, app, admin={"token": TOKEN}, logging={"access": False})
    await started(made)
    yield made
    await made.end(signal.SIGKILL)


async def command(
    sidecar: Sidecar, *arguments: str, stdin: bytes = b"", token: str = TOKEN
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "batch", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "SIDECAR_ADMIN_URL": sidecar.admin, "SIDECAR_ADMIN_TOKEN": token},
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), 40)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_submitted_awaited_and_read(sidecar: Sidecar, app: CountingApp, tmp_path: Path) -> None:
    """A file goes in, its progress is told in lines without a terminal, its results come out as a file."""
    (tmp_path / "in.ndjson").write_bytes(jobs(200, "GET", "POST"))
    results = tmp_path / "out.ndjson"
    code, out, err = await command(
        sidecar, "submit", str(tmp_path / "in.ndjson"), "--name", "mine", "--results", str(results)
    )
    assert (code, len(app.calls)) == (0, 200), err
    assert err.splitlines()[-1].startswith(f"{out.strip()} completed: 200/200 (100%), 0 failed")
    assert len({json.loads(line)["custom_id"] for line in results.read_bytes().splitlines()}) == 200
    code, out, err = await command(sidecar, "list")
    assert code == 0
    assert out.rstrip().endswith("mine")


async def test_from_standard_input_and_cancelled(sidecar: Sidecar, app: CountingApp) -> None:
    """`-` is the standard input; a cancelled batch makes waiting for it exit with 1."""
    app.seconds = 0.2
    code, out, _ = await command(sidecar, "submit", "-", "--max-concurrency", "2", stdin=jobs(300, "GET"))
    assert code == 0
    batch = out.strip()
    code, out, _ = await command(sidecar, "cancel", batch)
    assert (code, "cancelled" in out) == (0, True)
    code, out, _ = await command(sidecar, "status", batch, "--wait", "--json")
    assert (code, json.loads(out)["status"]) == (1, "cancelled")
    code, out, _ = await command(sidecar, "results", batch)
    assert len(out.splitlines()) == 300


async def test_errors_are_for_people(sidecar: Sidecar) -> None:
    """Bad lines with their numbers, a wrong token, no such file or batch, no sidecar: each in words."""
    code, out, err = await command(sidecar, "submit", "-", stdin=b"{\n" + jobs(1, "GET"))
    assert (code, out) == (1, "")
    assert "line 1: not JSON" in err
    for status, words, arguments, token in (
        (1, "admin.token", ("submit", "-"), "wrong"),
        (2, "No such file", ("submit", "missing.ndjson"), TOKEN),
        (1, "there is no batch none", ("status", "none"), TOKEN),
        (1, "is the sidecar running?", ("list", "--admin", "http://127.0.0.1:9"), TOKEN),
    ):
        code, out, err = await command(sidecar, *arguments, token=token)
        assert (code, out) == (status, "")
        assert words in err
        assert "Traceback" not in err


async def reader(sidecar: Sidecar, batch: str) -> asyncio.subprocess.Process:
    """`sidecar batch results`, running."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "batch", "results", batch),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT), "SIDECAR_ADMIN_URL": sidecar.admin},
    )


async def test_a_reader_that_has_seen_enough(sidecar: Sidecar, app: CountingApp) -> None:
    """`sidecar batch results ID | head -1` ends in order, and says nothing of a sidecar that is not there."""
    app.padding = 2000
    _, out, _ = await command(sidecar, "submit", "-", stdin=jobs(300, "GET"))
    process = await reader(sidecar, out.strip())
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(await process.stdout.readline())["status"] == 200
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined] # the only way
    assert await asyncio.wait_for(process.wait(), 40) == 0
    assert await process.stderr.read() == b""


async def test_a_place_for_results_is_looked_at_first(sidecar: Sidecar, app: CountingApp) -> None:
    """A file that cannot be written is told of before anything is submitted."""
    code, out, err = await command(
        sidecar, "submit", "-", "--results", "/no/such/folder/out", stdin=jobs(1, "GET")
    )
    assert (code, out) == (2, "")
    assert "/no/such/folder/out: No such file" in err
    assert not app.calls


async def test_a_batch_that_is_deleted_is_not_waited_for(sidecar: Sidecar, app: CountingApp) -> None:
    """Who waits for it, or reads its results, is told that it is gone: what was read is not all."""
    app.seconds = 0.3
    async with BatchClient(sidecar, TOKEN) as client:
        batch = await client.accepted(jobs(200, "GET"), max_concurrency="1")
        process = await reader(sidecar, batch)
        waiting = asyncio.ensure_future(command(sidecar, "status", batch, "--wait"))
        assert process.stdout is not None
        await process.stdout.readline()
        async with client.http.delete(f"/batches/{batch}") as reply:
            assert reply.status == 200
    code, _, told = await waiting
    _, err = await asyncio.wait_for(process.communicate(), 40)
    assert (code, process.returncode) == (1, 1)
    for text in (told, err.decode()):
        assert f"there is no batch {batch}" in text


async def test_results_are_read_on_when_the_sidecar_restarts(sidecar: Sidecar, app: CountingApp) -> None:
    """Reading goes on where it broke off, whether the sidecar was stopped or killed: each result once."""
    app.seconds = 0.02
    async with BatchClient(sidecar, TOKEN) as client:
        batch = await client.accepted(jobs(600, "GET"), max_concurrency="2")
    process = await reader(sidecar, batch)
    assert process.stdout is not None
    out = [await process.stdout.readline()]
    for how in (signal.SIGTERM, signal.SIGKILL):
        await sidecar.end(how)
        await started(sidecar)
        out += [await process.stdout.readline() for _ in range(100)]
    rest, err = await asyncio.wait_for(process.communicate(), 40)
    assert (process.returncode, err) == (0, b"")
    names = [json.loads(line)["custom_id"] for line in (*out, *rest.splitlines())]
    assert sorted(map(int, names)) == list(range(600))


BATCH: dict[str, Any] = {
    "id": "batch_1",
    "status": "running",
    "counts": {"total": 200, "completed": 90, "failed": 8, "unknown": 2, "pending": 100},
    "jobs_per_second": 12.5,
    "rating": "critical",
    "eta_seconds": 3725,
    "in_flight": 7,
    "concurrency": 12,
}


def test_the_line_tells_all() -> None:
    """Done, failed, rate, time left and concurrency, with a bar for a terminal."""
    rest = "running: 100/200 (50%), 8 failed, 2 unknown, 12.5/s critical, 1h02m left, 7 of 12 in flight"
    assert line_of(BATCH) == f"batch_1 {rest}"
    assert line_of(BATCH, bar=True) == f"[############............] {rest}"


def test_a_bar_is_drawn_in_place() -> None:
    """On a terminal each state overwrites the one before; elsewhere there is a line every few seconds."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, plain = Terminal(), io.StringIO()
    clock = ManualClock()
    for to in (terminal, plain):
        progress = Progress(to, clock)
        for _ in range(3):
            progress.show(BATCH)
        progress.end({**BATCH, "status": "completed"})
    assert terminal.getvalue().count("\r") == 4
    assert terminal.getvalue().count("\n") == 1
    assert [line.split()[1] for line in plain.getvalue().splitlines()] == ["running:", "completed:"]

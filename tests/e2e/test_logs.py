"""Logs of the product as it runs: what a cached route's lines tell, and outputs that take no more."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes import Program, Sidecar, TinyApp, until_connects

DROPPED = "nextvision_access_log_lines_dropped_total"
POLICIES = {
    "name": "site",
    "direction": "ingress",
    "routes": [
        {"name": "kept", "match": {"path": "/kept"}, "cache": {"ttl": "1m"}},
        {"name": "rest", "match": {"path": "/*"}},
    ],
}


async def gets(sidecar: Sidecar, *paths: str, **headers: str) -> list[int]:
    async with aiohttp.ClientSession() as http:
        statuses = []
        for path in paths:
            async with http.get(sidecar.url + path, headers=headers) as reply:
                await reply.read()
                statuses.append(reply.status)
        return statuses


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("did not happen")


async def test_a_cached_route_tells_what_a_replay_needs(tmp_path: Path) -> None:
    """Key and freshness of the miss and of its hit are in the file, with the ids that tie lines together."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(
        tmp_path,
        app.port,
        POLICIES,
        logging={"file": "logs/access.log", "fields": {"user_id": "X-User-ID"}},
    )
    (tmp_path / "logs").mkdir()
    await app.start()
    await sidecar.start()
    await gets(sidecar, "/kept", "/kept", "/", **{"X-Correlation-ID": "c-1", "X-User-ID": "u7"})
    assert await sidecar.end() == 0
    await app.end()
    text = (tmp_path / "logs" / "access.log").read_text()
    assert "{" not in sidecar.output.read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if line["logger"] == "sidecar.access"]
    assert [line["cache"] for line in lines] == ["miss", "hit", None]
    assert lines[0]["cache_key"] == lines[1]["cache_key"]
    assert lines[0]["ttl"] == 60
    assert 0 <= lines[1]["ttl"] <= 60
    assert "cache_key" not in lines[2]
    assert {(line["correlation_id"], line["user_id"]) for line in lines} == {("c-1", "u7")}


async def test_a_full_disk_stops_no_traffic(tmp_path: Path) -> None:
    """Every request is answered; what is lost is counted in a metric, and said once on stderr."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, POLICIES, logging={"file": "/dev/full"})
    await app.start()
    await sidecar.start()
    assert await gets(sidecar, *["/"] * 20) == [200] * 20
    await asyncio.sleep(0.3)
    assert await gets(sidecar, *["/"] * 20) == [200] * 20
    await asyncio.sleep(0.3)
    assert (await sidecar.metrics())[DROPPED] >= 40
    assert await sidecar.end() == 0
    await app.end()
    said = sidecar.output.read_text().splitlines()
    assert said == ["sidecar: log lines are dropped: No space left on device"]


async def test_a_closed_stdout_stops_no_traffic(tmp_path: Path) -> None:
    """The reader of a pipe goes away: requests are answered, lines counted, and it is said once."""
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, POLICIES)
    await app.start()
    read, write = os.pipe()
    with sidecar.output.open("ab") as file:
        sidecar.process = await asyncio.create_subprocess_exec(
            *sidecar.command, stdout=write, stderr=file, env=sidecar.environment
        )
    os.close(write)
    assert b"listening" in await asyncio.to_thread(os.read, read, 65536)
    os.close(read)
    for _ in range(2):
        assert await gets(sidecar, *["/"] * 20) == [200] * 20
        await asyncio.sleep(0.3)
    assert (await sidecar.metrics())[DROPPED] == 40
    assert await sidecar.end() == 0
    await app.end()
    assert sidecar.output.read_text().splitlines() == ["sidecar: log lines are dropped: Broken pipe"]


async def test_a_file_that_cannot_be_opened_is_said_at_the_start(tmp_path: Path) -> None:
    """Exit code 2, the key, the file and the reason."""
    sidecar = Sidecar(tmp_path, 1, logging={"file": "none/access.log"})
    await Program.start(sidecar)
    assert sidecar.process is not None
    assert await asyncio.wait_for(sidecar.process.wait(), 20) == 2
    [said] = sidecar.output.read_text().splitlines()
    assert said.startswith("sidecar: logging.file: ")
    assert "none/access.log: No such file or directory" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own takes root")
async def test_a_disk_that_has_room_again_is_written_again(tmp_path: Path) -> None:
    """A tiny file system fills up, and is emptied: requests go on, and so does the log."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk)
    if await mount.wait():
        pytest.skip("no file system can be mounted here")
    app = TinyApp(tmp_path)
    sidecar = Sidecar(tmp_path, app.port, POLICIES, logging={"file": "disk/log", "rotate": "off"})
    try:
        await app.start()
        await sidecar.start()
        await until_connects(sidecar.admin_port)
        (disk / "ballast").write_bytes(b"x" * 48 * 1024)
        while not (await sidecar.metrics())[DROPPED]:
            assert await gets(sidecar, *["/"] * 50) == [200] * 50
        (disk / "ballast").unlink()
        size = (disk / "log").stat().st_size
        assert await gets(sidecar, "/again") == [200]
        await until(lambda: (disk / "log").stat().st_size > size)
        assert await sidecar.end() == 0
        assert json.loads((disk / "log").read_text().splitlines()[-1])["message"] == "stopped"
    finally:
        sidecar.send(signal.SIGKILL)
        await (await asyncio.create_subprocess_exec("umount", "--lazy", disk)).wait()
        await app.end()

"""Batches against a real sidecar: an app that counts, and a client of the admin listener."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.support.processes import Sidecar, until_connects

POLICIES: dict[str, Any] = {
    "name": "counted",
    "routes": [{"name": "jobs", "match": {"path": "/jobs/*"}}],
}

KILLS = int(os.environ.get("BATCH_KILLS", "6"))
"""How often the sidecar is killed; the environment asks for more."""


class CountingApp:
    """Answers `/jobs/ID` after `seconds`, and counts by ID; in the test's own process. With `async with`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: Counter[str] = Counter()
        self.keys: dict[str, set[str | None]] = {}
        """Idempotency keys that came, by ID."""
        self.most = 0
        self._now = 0
        self.padding = 0
        """Bytes that its answers are longer."""
        self.port = 0
        self._runner: web.AppRunner | None = None

    async def _job(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        self.calls[name] += 1
        self.keys.setdefault(name, set()).add(request.headers.get("Idempotency-Key"))
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            if self.seconds:
                await asyncio.sleep(self.seconds)
        finally:
            self._now -= 1
        return web.json_response({"id": name, **({"padding": "x" * self.padding} if self.padding else {})})

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """At the same port as before, where there was one."""
        app = web.Application()
        app.router.add_route("*", "/jobs/{id}", self._job)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()


def batch_sidecar(folder: Path, app: CountingApp, **settings: Any) -> Sidecar:
    return Sidecar(folder, app.port, settings.pop("policies", POLICIES), **settings)


async def started(sidecar: Sidecar) -> None:
    await sidecar.start()
    await until_connects(sidecar.admin_port)


@asynccontextmanager
async def serving(sidecar: Sidecar) -> AsyncIterator[None]:
    """Started; and killed at the end, unless the test has ended it."""
    await started(sidecar)
    try:
        yield
    finally:
        if sidecar.process is not None and sidecar.process.returncode is None:
            await sidecar.end(signal.SIGKILL)


def ndjson(lines: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def jobs(count: int, *methods: str) -> bytes:
    """Lines 0 to `count`, whose methods take turns."""
    return ndjson(
        {"custom_id": str(number), "method": methods[number % len(methods)], "url": f"/jobs/{number}"}
        for number in range(count)
    )


class BatchClient:
    """With `async with`."""

    def __init__(self, sidecar: Sidecar, token: str = "") -> None:
        self._url = sidecar.admin
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self.http = aiohttp.ClientSession(self._url, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    async def submit(self, data: Any, **options: str) -> tuple[int, dict[str, Any]]:
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.http.post("/batches", data=body, params=options) as reply:
            return reply.status, await reply.json(content_type=None)

    async def accepted(self, data: Any, **options: str) -> str:
        status, answer = await self.submit(data, **options)
        assert status == 202, answer
        name = answer["id"]
        assert isinstance(name, str)
        return name

    async def show(self, batch: str) -> dict[str, Any]:
        async with self.http.get(f"/batches/{batch}") as reply:
            shown = await reply.json(content_type=None)
            assert reply.status == 200, shown
            assert isinstance(shown, dict)
            return shown

    async def until(self, batch: str, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """What the batch shows once `holds` of that. Raises AssertionError."""
        for _ in range(400):
            shown = await self.show(batch)
            if holds(shown):
                return shown
            await asyncio.sleep(0.05)
        raise AssertionError(f"it did not come to that: {shown}")

    async def results(self, batch: str) -> list[dict[str, Any]]:
        """All of them: returns when the batch is over."""
        timeout = aiohttp.ClientTimeout(total=50)
        async with self.http.get(f"/batches/{batch}/results", timeout=timeout) as reply:
            assert reply.status == 200
            return [json.loads(line) async for line in reply.content]


async def killed_and_resumed(
    sidecar: Sidecar, client: BatchClient, app: CountingApp, kills: int
) -> list[dict[str, Any]]:
    """SIGKILL at random moments of a batch, and what is promised of it. Gives the results."""
    app.seconds = 0.02
    lines = 200 * kills
    batch = await client.accepted(jobs(lines, "GET", "POST"))
    chance = random.Random()
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.05, 0.4))
        await sidecar.end(signal.SIGKILL)
        await started(sidecar)
    results = await client.results(batch)
    assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(lines)}
    unknown = {it["custom_id"] for it in results if it.get("error", {}).get("code") == "unknown"}
    assert all(int(name) % 2 for name in unknown)
    assert len(unknown) <= 50 * kills
    assert all(it.get("status") == 200 for it in results if it["custom_id"] not in unknown)
    assert all(count == 1 for name, count in app.calls.items() if int(name) % 2)
    assert all(len(keys) == 1 for keys in app.keys.values())
    counts = (await client.show(batch))["counts"]
    assert counts == {
        "total": lines,
        "completed": lines - len(unknown),
        "failed": 0,
        "unknown": len(unknown),
        "pending": 0,
    }
    return results


async def shared_by_two(folder: Path, app: CountingApp, store: str) -> None:
    """Two sidecars work on one batch, and the one that took it in is killed."""
    app.seconds = 0.02
    sidecars = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        settings: dict[str, Any] = {"batch": {"store": store}, "logging": {"access": False}}
        sidecars.append(batch_sidecar(folder / name, app, **settings))
    first, second = sidecars
    await started(first)
    try:
        async with BatchClient(first) as client:
            batch = await client.accepted(jobs(1500, "GET", "POST"), max_concurrency="5")
        await started(second)
        async with BatchClient(second) as client:
            await client.until(batch, lambda shown: shown.get("in_flight"))
            await first.end(signal.SIGKILL)
            results = await client.results(batch)
        assert Counter(it["custom_id"] for it in results) == {str(number): 1 for number in range(1500)}
        unknown = [it for it in results if "error" in it]
        assert {it["error"]["code"] for it in unknown} <= {"unknown"}
        assert len(unknown) <= 5
        assert all(count == 1 for name, count in app.calls.items() if int(name) % 2)
    finally:
        for sidecar in sidecars:
            if sidecar.process is not None and sidecar.process.returncode is None:
                await sidecar.end(signal.SIGKILL)

"""What npm's edition of the public suite leaves out: stale-while-revalidate, and a 503 for stale-if-error.

`Age` makes an answer as old as a test needs it: nobody waits.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.support.processes import Sidecar

POLICIES = {"name": "suite", "routes": [{"name": "all", "cache": {}}]}
FRESH = 10
WINDOW = 60
WHILE_REVALIDATE = f"stale-while-revalidate={WINDOW}"
IF_ERROR = f"stale-if-error={WINDOW}"


class Aged:
    """Counts its requests; its first answer is `age` seconds old, the next are new, with `then` as status."""

    def __init__(self, age: int, directive: str, then: int = 200) -> None:
        self.age = age
        self.directive = directive
        self.then = then
        self.seen: list[str | None] = []
        self.asked_again = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append(request.headers.get("If-None-Match"))
        headers = {"Cache-Control": f"max-age={FRESH}, {self.directive}", "ETag": '"abc"'}
        if len(self.seen) == 1:
            return web.Response(text="1", headers={**headers, "Age": str(self.age)})
        self.asked_again.set()
        return web.Response(text=str(len(self.seen)), status=self.then, headers=headers)


@asynccontextmanager
async def behind_a_sidecar(folder: Path, aged: Aged) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a real sidecar before `aged`."""
    application = web.Application()
    application.router.add_get("/", aged.answer)
    async with TestServer(application) as server:
        assert server.port is not None
        sidecar = Sidecar(folder, server.port, POLICIES)
        await sidecar.start()
        try:
            async with aiohttp.ClientSession(sidecar.url) as client:
                yield client
        finally:
            await sidecar.end(signal.SIGKILL)


async def ask(client: aiohttp.ClientSession) -> tuple[int, str, str]:
    """The status, the body, and what the cache says that it did."""
    async with client.get("/") as reply:
        return reply.status, await reply.text(), reply.headers["Cache-Status"]


async def test_within_the_window(tmp_path: Path) -> None:
    """A stale answer is served at once, and one conditional request refreshes it (RFC 5861, 3)."""
    aged = Aged(FRESH + WINDOW // 2, WHILE_REVALIDATE)
    async with behind_a_sidecar(tmp_path, aged) as client:
        await ask(client)
        code, body, status = await ask(client)
        assert (code, body) == (200, "1")
        assert status.startswith("sidecar; hit; ttl=-")
        await asyncio.wait_for(aged.asked_again.wait(), 10)
        assert aged.seen == [None, '"abc"']


async def test_after_the_window(tmp_path: Path) -> None:
    """Past the window nobody gets the stale answer: the origin is asked first."""
    aged = Aged(FRESH + WINDOW + 1, WHILE_REVALIDATE)
    async with behind_a_sidecar(tmp_path, aged) as client:
        await ask(client)
        code, body, status = await ask(client)
        assert (code, body) == (200, "2")
        assert "fwd=stale" in status
        assert len(aged.seen) == 2


async def test_503_within_the_window(tmp_path: Path) -> None:
    """An answer that says stale-if-error stands in for a 503, and says so (RFC 5861, 4)."""
    aged = Aged(FRESH + WINDOW // 2, IF_ERROR, then=503)
    async with behind_a_sidecar(tmp_path, aged) as client:
        await ask(client)
        code, body, status = await ask(client)
        assert (code, body) == (200, "1")
        assert "fwd=stale; fwd-status=503" in status
        assert len(aged.seen) == 2


async def test_503_after_the_window(tmp_path: Path) -> None:
    """Past the window the client gets the 503."""
    aged = Aged(FRESH + WINDOW + 1, IF_ERROR, then=503)
    async with behind_a_sidecar(tmp_path, aged) as client:
        await ask(client)
        code, body, _ = await ask(client)
        assert (code, body) == (503, "2")

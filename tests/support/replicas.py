"""Several sidecars beside one app, and what the Valkey that they share then holds."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.processes import Sidecar, TinyApp, until_connects
from tests.support.valkey import Valkey

HOST = "shop.test"
"""Keys have the host: that of all sidecars is the same."""


class Replicas:
    """One app, and as many sidecars beside it as a test wants."""

    def __init__(self, folder: Path, policies: dict[str, Any]) -> None:
        self.folder = folder
        self.policies = policies
        self.app = TinyApp(folder)
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers={"Host": HOST})
        self._sidecars: list[Sidecar] = []

    async def sidecar(self, redis: str = "off") -> Sidecar:
        """Starts one; it is connected to its Redis."""
        folder = self.folder / f"sidecar-{len(self._sidecars)}"
        folder.mkdir()
        sidecar = Sidecar(folder, self.app.port, self.policies, cache={"redis": redis})
        self._sidecars.append(sidecar)
        await sidecar.start()
        await until_connects(sidecar.admin_port)
        if redis != "off":
            await self.connected(sidecar)
        return sidecar

    async def connected(self, sidecar: Sidecar) -> None:
        for _ in range(250):
            if (await self.stats(sidecar))["redis_connected"]:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("it never connected to the server")

    async def stats(self, sidecar: Sidecar) -> dict[str, Any]:
        async with self.http.get(sidecar.admin + "/admin/cache/stats") as reply:
            assert reply.status == 200
            stats: dict[str, Any] = await reply.json()
            return stats

    async def get(self, sidecar: Sidecar, path: str, **headers: str) -> tuple[int, str, str]:
        """Status, body and Cache-Status."""
        async with self.http.get(sidecar.url + path, headers=headers) as reply:
            return reply.status, await reply.text(), reply.headers.get("Cache-Status", "")

    async def purge(self, sidecar: Sidecar, **selector: str) -> int:
        async with self.http.post(sidecar.admin + "/admin/cache/purge", json=selector) as reply:
            assert reply.status == 200, await reply.text()
            purged: int = (await reply.json())["purged"]
            return purged

    async def calls(self, path: str) -> int:
        """How often the app was asked for `path`."""
        async with self.http.get(f"http://127.0.0.1:{self.app.port}/calls") as reply:
            return int((await reply.json()).get(path, 0))

    async def until_called(self, path: str, times: int = 1) -> None:
        for _ in range(500):
            if await self.calls(path) >= times:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{path} was never asked for")

    async def open(self, path: str) -> None:
        """Lets the app answer `/gated/…`."""
        async with self.http.post(f"http://127.0.0.1:{self.app.port}{path}") as reply:
            assert reply.status == 204

    async def close(self) -> None:
        await self.http.close()
        for program in (*self._sidecars, self.app):
            if program.process is not None and program.process.returncode is None:
                await program.end(signal.SIGKILL)


async def crowded(sidecar: Sidecar, connections: int) -> None:
    """Returns once so many clients are connected, and have had time to be read."""
    for _ in range(1000):
        metrics = await sidecar.metrics()
        if metrics['nextvision_connections_active{listener="ingress"}'] == connections:
            await asyncio.sleep(0.3)
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the clients never came or went")


def everything(valkey: Valkey) -> set[bytes]:
    """Each key and each value of the server, of sets each member."""
    found: set[bytes] = set()
    cursor: Any = b"0"
    while True:
        reply = valkey.ask("SCAN", cursor, "COUNT", "1000")
        assert isinstance(reply, list)
        cursor, keys = reply
        assert isinstance(keys, list)
        for key in keys:
            assert isinstance(key, bytes)
            kind = valkey.ask("TYPE", key)
            value = valkey.ask("ZRANGE", key, "0", "-1") if kind == b"zset" else valkey.ask("GET", key)
            found.add(key)
            found.update(
                part for part in (value if isinstance(value, list) else [value]) if type(part) is bytes
            )
        if cursor == b"0":
            return found


def records(valkey: Valkey) -> set[bytes]:
    """The keys of responses."""
    return {key for key in valkey.stored() if not key.startswith(b"nextvision:#")}


async def until_stored(valkey: Valkey, count: int) -> None:
    """Writes go there in the background."""
    for _ in range(200):
        if len(records(valkey)) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{len(records(valkey))} of {count} were stored")

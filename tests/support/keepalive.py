"""Clients that keep their connections, send one request after the other, and tell what became of each."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple


class Sent(NamedTuple):
    started: float
    """`time.monotonic()`."""
    ended: float
    status: int
    """0: there was no answer."""
    reused: bool
    """On a connection that had served one before."""


class Clients:
    """`count` of them; nothing is tried again, so what is lost is seen."""

    def __init__(self, port: int, count: int, path: str = "/load", pause: float = 0.0) -> None:
        """`pause` in seconds, between two requests of a client."""
        self._port = port
        self._path = path
        self._pause = pause
        self.sent: list[Sent] = []
        self._stopping = False
        self._wanted = 0
        self._reached = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(count)]

    async def stop(self) -> list[Sent]:
        self._stopping = True
        await asyncio.gather(*self._tasks)
        return self.sent

    @property
    def lost(self) -> list[Sent]:
        return [it for it in self.sent if it.status != 200]

    async def until(self, count: int) -> None:
        """Waits until so many more have been answered."""
        self._wanted = len(self.sent) + count
        self._reached.clear()
        await self._reached.wait()

    async def _run(self, number: int) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        request = f"GET {self._path}/{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        while not self._stopping:
            started = time.monotonic()
            reused = connection is not None
            try:
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", self._port)
                reader, writer = connection
                writer.write(request)
                status, again = await asyncio.wait_for(_answer(reader), 20)
            except (OSError, EOFError, TimeoutError):
                status, again = 0, False
            self.sent.append(Sent(started, time.monotonic(), status, reused))
            if len(self.sent) >= self._wanted:
                self._reached.set()
            if not again and connection is not None:
                connection[1].close()
                connection = None
            await asyncio.sleep(self._pause)
        if connection is not None:
            connection[1].close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(" ", 2)[1]), "connection: close" not in head

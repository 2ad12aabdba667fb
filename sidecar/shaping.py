"""A response body that comes slowly, or not to its end: what an injected fault makes of a good one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sidecar.errors import BodyBroken
from sidecar.exchange import Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.clock import Clock

PIECES: Final = 10
"""A dripping body comes in so many pieces a second."""


class ShapedBody:
    """Feeds what `body` holds into `stream`, at `rate` bytes a second, up to `most` bytes.

    It is the `Source` of its stream. Consumers see what they would see of a slow or broken upstream.
    """

    def __init__(
        self, body: bytes | Stream, clock: Clock, *, rate: int | None = None, most: int | None = None
    ) -> None:
        length = body.length if isinstance(body, Stream) else len(body)
        self.stream = Stream(self, length)
        self._body = body
        self._clock = clock
        self._rate = rate
        self._left = most
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self._going_on: asyncio.Future[None] | None = None

    def start(self, keep: Callable[[asyncio.Task[None]], None]) -> Stream:
        """Begins, in a task that is given to `keep`."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="injected body")
        keep(self._task)
        return self.stream

    async def _run(self) -> None:
        body, stream = self._body, self.stream
        try:
            if isinstance(body, Stream):
                while data := await body.read():
                    if not await self._send(data):
                        return
            elif not await self._send(body):
                return
        except asyncio.CancelledError:
            stream.fail(BodyBroken("given up"))
            raise
        except Exception as error:  # noqa: BLE001 # whatever broke the body, its reader is told
            stream.fail(error)
        else:
            stream.finish()

    async def _send(self, data: bytes) -> bool:
        """Feeds one chunk, piece by piece; False where the body is cut."""
        stream, rate = self.stream, self._rate
        size = len(data) if rate is None else max(1, rate // PIECES)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            if rate is not None:
                await self._clock.sleep(len(piece) / rate)
            if self._left is not None and len(piece) > self._left:
                if self._left:
                    stream.feed(piece[: self._left])
                self._close()
                stream.fail(BodyBroken("the connection ended within the body"))
                return False
            if self._left is not None:
                self._left -= len(piece)
            stream.feed(piece)
            while self._paused:
                self._going_on = asyncio.get_running_loop().create_future()
                await self._going_on
        return True

    def _close(self) -> None:
        if isinstance(self._body, Stream):
            self._body.close()

    # -- the source's side ---------------------------------------------------------------------

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        waiter, self._going_on = self._going_on, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def abandon(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._close()

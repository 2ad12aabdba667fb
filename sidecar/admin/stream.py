"""Answers that go on: server-sent events and NDJSON.

A reader that does not keep up holds up its own handler only (`write` waits for it), and one that left shows
at the next write, as ConnectionResetError. When the listener closes, streams end like any body.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import orjson
from aiohttp import web

from sidecar.admin.route import EVENTS

HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Of all answers."""


class Open:
    """The streams of one listener."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[object]] = set()
        self.closing = False

    async def close(self, _: web.Application) -> None:
        """Ends them all: their listener waits for none."""
        self.closing = True
        for task in tuple(self.tasks):
            task.cancel()


OPEN: Final = web.AppKey("open", Open)


@asynccontextmanager
async def streaming(request: web.Request, content_type: str) -> AsyncIterator[web.StreamResponse]:
    """A 200 whose body is written piece by piece; the handler returns it after the block.

    The block ends without an error when the listener closes or the reader leaves.
    """
    # A proxy in front that collects answers before it passes them on would hold events back.
    response = web.StreamResponse(
        headers={**HEADERS, "Content-Type": content_type, "X-Accel-Buffering": "no"}
    )
    streams = request.app[OPEN]
    task = asyncio.current_task()
    assert task is not None
    streams.tasks.add(task)
    try:
        await response.prepare(request)
        yield response
    except ConnectionResetError:
        pass
    except asyncio.CancelledError:
        if not streams.closing:
            raise
        task.uncancel()
    finally:
        streams.tasks.discard(task)


class Events:
    """The sending end of a stream of server-sent events (WHATWG HTML, 9.2)."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    async def send(self, data: object, *, event: str = "", id: str = "") -> None:  # noqa: A002 # the field's name
        """One event; `data` goes as JSON, which has no line breaks."""
        head = (f"event: {event}\n" if event else "") + (f"id: {id}\n" if id else "")
        await self.send_raw(head.encode() + b"data: " + orjson.dumps(data) + b"\n\n")

    async def send_raw(self, frame: bytes) -> None:
        """Whole events, made already: what all readers get alike is encoded once."""
        await self._response.write(frame)

    async def beat(self) -> None:
        """A comment, so that nobody on the way takes a quiet stream for a dead one."""
        await self._response.write(b":\n\n")


@asynccontextmanager
async def events(request: web.Request) -> AsyncIterator[tuple[web.StreamResponse, Events]]:
    """`streaming`, of server-sent events."""
    async with streaming(request, EVENTS) as response:
        yield response, Events(response)

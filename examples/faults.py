"""The demo's hold on the sample app: a switch that breaks it, and a count of what reached it.

Neither is a part of the app. `POST /_fault` takes

    {"mode": "ok"}
    {"mode": "burst503", "every": 1.5, "for": 0.3}   503 during the first 0.3 s of each 1.5 s
    {"mode": "hang", "one_in": 10}                   each tenth request is never answered
"""

from __future__ import annotations

import json
import mmap
import struct
import time
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, ValidationError

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send


class Fault(BaseModel):
    mode: Literal["ok", "burst503", "hang"]
    every: float = Field(default=1.5, gt=0)
    lasting: float = Field(default=0.3, ge=0, alias="for")
    one_in: int = Field(default=1, ge=1)


class Count:
    """A number in a file: it outlives a process that is killed, and is read without asking the app."""

    FORMAT = struct.Struct("=q")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(self.FORMAT.pack(0))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), self.FORMAT.size)

    def add(self) -> None:
        self.FORMAT.pack_into(self.memory, 0, self.FORMAT.unpack_from(self.memory)[0] + 1)


class FaultSwitch:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, count_file: Path | None = None) -> None:
        self.app = app
        self.count = Count(count_file) if count_file is not None else None
        self.fault = Fault(mode="ok")
        self.since = 0.0
        self.seen = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/_fault":
            await self._switch(scope, receive, send)
            return
        if self.count is not None:
            self.count.add()
        self.seen += 1
        if self._in_burst():
            await _answer(send, 503, {"detail": "Service temporarily unavailable"})
        elif self.fault.mode == "hang" and self.seen % self.fault.one_in == 0:
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            await self.app(scope, receive, send)

    def _in_burst(self) -> bool:
        if self.fault.mode != "burst503":
            return False
        return (time.monotonic() - self.since) % self.fault.every < self.fault.lasting

    async def _switch(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["method"] != "POST":
            await _answer(send, 405, {"detail": "POST a fault"})
            return
        try:
            self.fault = Fault.model_validate_json(body)
        except ValidationError as error:
            found = json.loads(error.json(include_url=False, include_context=False))
            await _answer(send, 422, {"detail": found})
            return
        self.since, self.seen = time.monotonic(), 0
        await _answer(send, 200, self.fault.model_dump(by_alias=True))


async def _answer(send: Send, status: int, body: object) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})

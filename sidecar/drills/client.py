"""The clients of the load: HTTP/1.1 over sockets of their own, one request at a time on each.

No client library: at 2,000 requests a second it would be late with its own schedule.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple, cast

import httptools

from sidecar.drills.plan import Aim

LARGEST_LOOKED_AT: Final = 1 << 20
"""Bytes of a body in which a wrong answer is looked for."""


class Answer(NamedTuple):
    """How a request ended."""

    status: int
    """0: there was no answer."""
    cause: str
    """Why there was none: `refused`, `tls`, `reset`, `timeout`, `malformed`, `crowded`; else empty."""
    degraded: bool = False
    """It carries `Sidecar-Degraded`."""
    wrong: bool = False
    """Its body matches what a wrong one looks like, and it does not say so."""


Done = Callable[[Answer], None]


class Wire(asyncio.Protocol):
    """A connection."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._transport: asyncio.Transport | None = None
        self._done: Done | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._wrong: re.Pattern[bytes] | None = None
        self._body = b""
        self._status = 0
        self._degraded = False
        self._framed = False
        self._whole = False
        self._keep = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none of asyncio's by class.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, wrong: re.Pattern[bytes] | None, done: Done) -> None:
        assert self._transport is not None
        self._done, self._wrong, self._body = done, wrong, b""
        self._status, self._degraded, self._framed, self._whole, self._keep = 0, False, False, False, False
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:  # what nobody asked for
            self.abort()
            return
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            self.give_up("malformed")
            return
        if self._whole:
            self._end(Answer(self._status, "", self._degraded, self._is_wrong()))

    # httptools calls these.

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"sidecar-degraded":
            self._degraded = True
        elif lower in {b"content-length", b"transfer-encoding"}:
            self._framed = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._wrong is not None and len(self._body) < LARGEST_LOOKED_AT:
            self._body += body

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._status >= 200:  # a 1xx is not the answer
            self._whole = True
            self._keep = self._parser.should_keep_alive()

    # The other ways to end.

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.forget(self)
        if self._done is None:
            return
        if (
            error is None and self._status >= 200 and not self._framed
        ):  # RFC 9112 6.3: it ends with the connection
            self._end(Answer(self._status, "", self._degraded, self._is_wrong()))
        else:
            self._end(Answer(0, "reset"))

    def give_up(self, cause: str) -> None:
        """Ends the request here, and the connection with it."""
        if self._done is not None:
            self._end(Answer(0, cause))
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _is_wrong(self) -> bool:
        return (
            self._wrong is not None
            and not self._degraded
            and self._status < 300
            and self._wrong.search(self._body) is not None
        )

    def _end(self, answer: Answer) -> None:
        done, self._done, self._parser = self._done, None, None
        if self._keep and self.usable:
            self._clients.idle.append(self)
        else:
            self.abort()
        if done is not None:
            done(answer)


class Clients:
    """All connections to one target."""

    def __init__(self, aim: Aim, most: int) -> None:
        self._aim = aim
        self._tls = ssl.create_default_context() if aim.tls is not None else None
        self._most = most
        self.idle: list[Wire] = []
        self._open = 0

    def on_open_wire(self, data: bytes, wrong: re.Pattern[bytes] | None, done: Done) -> Wire | None:
        """Sends a request, where a connection is free; `done` is told how it ended. None: none is."""
        while self.idle:
            wire = self.idle.pop()
            if wire.usable:
                wire.send(data, wrong, done)
                return wire
        return None

    async def on_new_wire(self, data: bytes, wrong: re.Pattern[bytes] | None, done: Done) -> Wire | None:
        """The same on a new connection. None: it has ended already."""
        if self._open >= self._most:
            done(Answer(0, "crowded"))
            return None
        self._open += 1
        loop = asyncio.get_running_loop()
        try:
            _, wire = await loop.create_connection(
                lambda: Wire(self),
                self._aim.address,
                self._aim.port,
                ssl=self._tls,
                server_hostname=self._aim.tls,
            )
        except OSError as error:
            self._open -= 1
            done(Answer(0, "tls" if isinstance(error, ssl.SSLError) else "refused"))
            return None
        except BaseException:
            self._open -= 1
            raise
        wire.send(data, wrong, done)
        return wire

    def forget(self, wire: Wire) -> None:
        self._open -= 1
        if wire in self.idle:
            self.idle.remove(wire)

    def close(self) -> None:
        for wire in tuple(self.idle):
            wire.abort()

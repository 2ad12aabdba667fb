"""Messages between the lead and one worker, by a Unix socket pair that nobody else has an end of.

A frame is its length and a pickled tuple: both ends are the same program of the same user, and the pair has
no name in any file system, so nobody else can write to it.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import struct
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    import socket

    from sidecar.clock import Clock

_LENGTH: Final = struct.Struct("<I")
LARGEST_BACKLOG: Final = 8 * 1024 * 1024
"""Bytes that may wait for the other end; hints are left out when there are more."""
_CAST, _CALL, _REPLY, _ERROR = range(4)

Handlers = Mapping[str, Callable[..., Any]]
"""By name; a coroutine function's result is awaited, beside what comes next."""


class Lost(Exception):
    """The other end is gone."""


class Refused(Exception):
    """The other end raised; the message is its own."""


class Channel(asyncio.Protocol):
    """One end. Frames arrive in the order in which they were sent, and are handled in that order."""

    def __init__(self, clock: Clock, handlers: Handlers, on_lost: Callable[[], object]) -> None:
        """`on_lost` is called once, when the other end is gone."""
        self._clock = clock
        self._handlers = handlers
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._numbers = count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = get_logger("sidecar.workers")
        self.left_out = 0
        """Hints that were not sent."""

    async def open(self, sock: socket.socket) -> None:
        """Takes over one end of the pair."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -- sending -------------------------------------------------------------------------------

    def cast(self, name: str, *values: object) -> None:
        """Calls a handler of the other end, and does not wait for it. Nothing happens where it is gone."""
        self._send((_CAST, 0, name, values))

    def hint(self, name: str, *values: object) -> None:
        """As `cast`; left out where the other end does not keep up."""
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() > LARGEST_BACKLOG:
            self.left_out += 1
            return
        self.cast(name, *values)

    async def call(self, name: str, *values: object, within: float) -> Any:
        """The result of a handler of the other end. Raises `Lost`, `Refused`, TimeoutError."""
        if self._transport is None or self._transport.is_closing():
            raise Lost
        number = next(self._numbers)
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        self._send((_CALL, number, name, values))
        timer = self._clock.arm(self._clock.now() + within, lambda: _late(future))
        try:
            return await future
        finally:
            timer.cancel()
            self._calls.pop(number, None)

    def _send(self, frame: tuple[int, int, str, object]) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        data = pickle.dumps(frame, pickle.HIGHEST_PROTOCOL)
        transport.write(_LENGTH.pack(len(data)) + data)

    # -- receiving -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by their type

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for future in self._calls.values():
            if not future.done():
                future.set_exception(Lost())
        self._calls.clear()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            frame = pickle.loads(bytes(buffer[start + _LENGTH.size : end]))  # noqa: S301 # see the module
            start = end
            self._take(*frame)
        del buffer[:start]

    def _take(self, kind: int, number: int, name: str, values: Any) -> None:
        if kind in (_CAST, _CALL):
            self._handle(kind, number, name, values)
            return
        future = self._calls.get(number)
        if future is None or future.done():
            return
        if kind == _REPLY:
            future.set_result(values)
        else:
            future.set_exception(Refused(values))

    def _handle(self, kind: int, number: int, name: str, values: tuple[object, ...]) -> None:
        try:
            result = self._handlers[name](*values)
        except Exception as error:  # noqa: BLE001 # the other end hears of it, or the log does
            self._failed(kind, number, name, error)
            return
        if inspect.isawaitable(result):
            task = asyncio.ensure_future(self._finish(kind, number, name, result))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif kind == _CALL:
            self._send((_REPLY, number, "", result))

    async def _finish(self, kind: int, number: int, name: str, result: Any) -> None:
        try:
            value = await result
        except Exception as error:  # noqa: BLE001 # as above
            self._failed(kind, number, name, error)
            return
        if kind == _CALL:
            self._send((_REPLY, number, "", value))

    def _failed(self, kind: int, number: int, name: str, error: Exception) -> None:
        if kind == _CALL:
            self._send((_ERROR, number, "", str(error) or repr(error)))
        else:
            self._log.error(
                "a message of another process was not understood", message=name, reason=repr(error)
            )


def _late(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())

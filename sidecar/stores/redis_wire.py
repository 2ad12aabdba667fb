"""One connection to a Redis or Valkey server: commands are pipelined, replies come in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Final, TypeVar, cast

from sidecar.stores.found import Lost
from sidecar.stores.resp import Parser, Reply, ReplyError, WireError, command

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.decisions.breaker import Permit
    from sidecar.stores.redis_url import Place, Target

T = TypeVar("T")

CONNECT_TIME: Final = 1.0
"""Seconds for name look-up, TCP, TLS and log-in together. No request waits for it."""


Answer = Reply | Lost


class ConnectError(Exception):
    """No connection could be made. `kind` is what is counted, the message is for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Operation:
    """A command whose reply is due."""

    __slots__ = ("future", "given_up", "permit", "sent")

    def __init__(self, future: asyncio.Future[Answer], sent: float, permit: Permit | None) -> None:
        self.future = future
        self.sent = sent
        """Monotonic seconds."""
        self.permit = permit
        self.given_up = False
        """Its time was over: the reply, should it come, is for nobody."""


class Wire(asyncio.Protocol):
    """Never raises: what has no reply gets a `Lost`. Nothing here knows of time limits."""

    def __init__(
        self,
        clock: Clock,
        answered: Callable[[Operation, Reply, float], None] | None = None,
        lost: Callable[[Wire, str], None] | None = None,
        pushed: Callable[[list[Reply]], None] | None = None,
    ) -> None:
        """`answered` gets the reply and the time; `pushed` gets what a subscription brings."""
        self._now = clock.now
        self._answered = answered
        self._lost = lost
        self._pushed = pushed
        self._loop = asyncio.get_running_loop()
        self._parser = Parser()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.waiting: deque[Operation] = deque()
        self.heard = 0.0
        """Monotonic seconds: when something last came."""
        self.closed = False

    def ask(self, *parts: bytes, permit: Permit | None = None) -> asyncio.Future[Answer]:
        """The future reply; `Lost.RESET` when the connection ends first."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self.closed:
            future.set_result(Lost.RESET)
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command(parts))
        self.waiting.append(Operation(future, self._now(), permit))
        return future

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def close(self, why: str = "closed") -> None:
        """At once: what waits is lost."""
        if self.closed:
            return
        self.closed = True
        if self._transport is not None:
            self._transport.abort()
        while self.waiting:
            operation = self.waiting.popleft()
            if not operation.future.done():
                operation.future.set_result(Lost.RESET)
        if self._lost is not None:
            self._lost(self, why)

    def _flush(self) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.heard = self._now()
        if self.closed:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.close("reset")

    def data_received(self, data: bytes) -> None:
        now = self.heard = self._now()
        try:
            replies = self._parser.feed(data)
        except WireError:
            self.close("protocol")
            return
        for reply in replies:
            if self._pushed is not None and type(reply) is list and reply and reply[0] == b"message":
                self._pushed(reply)
            elif self.waiting:
                operation = self.waiting.popleft()
                if self._answered is not None:
                    self._answered(operation, reply, now)
                if not operation.future.done():
                    operation.future.set_result(reply)
            else:  # answers nothing that was asked
                self.close("protocol")
            if self.closed:
                return


async def within(clock: Clock, seconds: float, work: Coroutine[object, object, T]) -> T:
    """`work`, cancelled after `seconds`. Raises TimeoutError then."""
    task = asyncio.ensure_future(work)
    late = False

    def cancel() -> None:
        nonlocal late
        late = task.cancel()

    timer = clock.arm(clock.now() + seconds, cancel)
    try:
        return await task
    except asyncio.CancelledError:
        if late and task.cancelled():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


async def dial(place: Place, target: Target, wire: Wire) -> None:
    """Connects `wire`, logs in and selects the database. Raises ConnectError."""
    loop = asyncio.get_running_loop()
    try:
        if place.path:
            await loop.create_unix_connection(lambda: wire, place.path)
        else:
            await loop.create_connection(lambda: wire, place.host, place.port, ssl=target.tls)
    except (OSError, ValueError) as error:  # ValueError: a name or a port that cannot be
        wire.close("connect")
        raise ConnectError("connect", f"{place}: {error}") from None
    greeting = []
    login = target.login
    if login.password:
        words = [login.username.encode()] if login.username else []
        greeting.append(wire.ask(b"AUTH", *words, login.password.encode()))
    if target.database:
        greeting.append(wire.ask(b"SELECT", b"%d" % target.database))
    for answer in greeting:
        expect(place, wire, await answer)


def expect(place: Place, wire: Wire, answer: Answer) -> Reply:
    """The reply, where it is one. Closes `wire` and raises ConnectError for an error or none."""
    if isinstance(answer, Lost):
        wire.close(answer.value)
        raise ConnectError(answer.value, f"{place}: no answer")
    if isinstance(answer, ReplyError):
        wire.close(answer.kind.lower())
        raise ConnectError(answer.kind.lower(), f"{place}: {answer.kind}")
    return answer

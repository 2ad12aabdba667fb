"""One request to the origin for all who want its answer.

A fill runs in a task of its own: a client that leaves ends nobody else's. At the head of the response
it is decided whether the answer may be shared (because it will be stored, or because it is an error,
which many copies of the same request would not mend); only then do those who wait get it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.caching.broadcast import Broadcast
from sidecar.exchange import Exchange, Request, Response, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sidecar.headers import Line
    from sidecar.stores.entry import Entry


class Filled:
    """What a fill came to, as it is known at the head of the response."""

    __slots__ = (
        "broadcast",
        "entry",
        "error",
        "key",
        "names",
        "response",
        "shared",
        "stored",
        "ttl",
        "validated",
    )

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.response: Response | None = None
        """What came, or what a 304 stands for. Its body is for the first alone unless `shared`."""
        self.entry: Entry | None = None
        """Whole and up to date: stored, or about to be."""
        self.ttl: int | None = None
        """Seconds for which what came is fresh; None where it is not for others."""
        self.shared = False
        """Others may have it too."""
        self.stored = False
        self.validated = False
        """The origin said 304."""
        self.key = b""
        """Where it is stored."""
        self.names: tuple[bytes, ...] = ()
        """What it varies by."""
        self.broadcast: Broadcast | None = None

    def take(self) -> Response:
        """The answer for one of those who wait. Not for an `entry`: that is answered from."""
        response = self.response
        assert response is not None
        if self.broadcast is None:
            return response if not self.shared else copy_of(response, response.body)
        return copy_of(response, self.broadcast.join())

    @property
    def open(self) -> bool:
        """Somebody may still join."""
        return self.shared and (self.broadcast is None or self.broadcast.kept)


def copy_of(response: Response, body: bytes | Stream) -> Response:
    copy = Response(response.status, response.headers, body, reason=response.reason, plain=response.plain)
    copy.verdict = response.verdict
    copy.degraded = response.degraded
    return copy


class Fill:
    """A request under way."""

    __slots__ = ("_first", "alone", "exchange", "filled", "task", "waiters")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.filled: Filled | None = None
        self.alone = False
        """Nobody may join: it ends with its client."""
        self.task: asyncio.Task[None] | None = None
        self.waiters: list[asyncio.Future[Filled]] = []
        self._first: asyncio.Future[Filled] | None = None

    async def wait(self, *, first: bool = False) -> Filled:
        """Who waits may be cancelled alone: each has a Future of its own.

        `first`: the request that the fill was started for. What may not be shared is for it.
        """
        if self.filled is not None:
            return self.filled
        waiter: asyncio.Future[Filled] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        if first:
            self._first = waiter
        try:
            return await waiter
        except asyncio.CancelledError:
            if first:
                self._abandoned()
            raise
        finally:
            if waiter in self.waiters:
                self.waiters.remove(waiter)

    def _abandoned(self) -> None:
        """The client whose request this is has left, perhaps in the turn in which its answer came."""
        if self.filled is not None:
            if not self.filled.shared and self.filled.response is not None:
                self.filled.response.close()
        elif self.alone and self.task is not None:
            self.task.cancel()

    def decided(self, filled: Filled) -> None:
        if self.filled is not None:
            return
        self.filled = filled
        if not filled.shared and filled.response is not None and (self._first is None or self._first.done()):
            filled.response.close()  # its client has left, and it is for nobody else
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(filled)


class Fills:
    """The fills under way, by key, and the tasks that they run in."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Fill] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: bytes) -> Fill | None:
        """One that may be joined."""
        fill = self._by_key.get(key)
        if fill is None or (fill.filled is not None and not fill.filled.open):
            return None
        return fill

    def start(
        self, key: bytes | None, fill: Fill, run: Callable[[Fill], Coroutine[object, object, None]]
    ) -> Fill:
        """`key` None: nobody may join."""
        if key is not None:
            self._by_key[key] = fill
        fill.alone = key is None
        task = fill.task = asyncio.get_running_loop().create_task(run(fill), name="fill")
        self._tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if key is not None and self._by_key.get(key) is fill:
                del self._by_key[key]
            if fill.filled is None:  # cancelled, or broken by a bug: nobody is left waiting
                filled = Filled()
                cancelled = task.cancelled()
                filled.error = asyncio.CancelledError() if cancelled else task.exception()
                filled.shared = True
                fill.decided(filled)
            elif not task.cancelled():
                task.exception()  # it was told to whoever reads the body

        task.add_done_callback(over)
        return fill

    def forget(self, prefix: bytes = b"") -> None:
        """What was changed or purged: who comes from now on joins no fill that was begun before."""
        for key in [key for key in self._by_key if key.startswith(prefix)]:
            del self._by_key[key]

    def background(self, work: Coroutine[object, object, object]) -> None:
        """Runs `work` beside the traffic."""

        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run(), name="cache")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def child_of(exchange: Exchange, now: float, headers: list[Line] | None = None) -> Exchange:
    """An exchange for the origin, with its own start and deadline; `headers` instead of the client's."""
    theirs = exchange.request
    request = theirs
    if headers is not None or not isinstance(theirs.body, bytes):
        request = Request(
            theirs.method,
            theirs.target,
            theirs.headers if headers is None else headers,
            theirs.body,
            host=theirs.host,
            scheme=theirs.scheme,
        )
    return exchange.child(request, now)


def report(child: Exchange, exchange: Exchange) -> None:
    """What the fill did belongs to the trail of the request that started it."""
    exchange.attempts = child.attempts
    exchange.upstream = child.upstream
    exchange.upstream_seconds = child.upstream_seconds
    exchange.verdict = child.verdict
    exchange.breaker = child.breaker
    for layer, decision in child.note_list or ():
        exchange.note(layer, decision)

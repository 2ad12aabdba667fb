"""Purges across replicas: what was purged is published, and heard by all the others.

Nothing rests on a message alone. Copies in memory are compared with the shared store every few seconds,
and when this subscription was interrupted, at their next use: `gap` says when.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from sidecar.stores.found import Lost
from sidecar.stores.purge_log import Purged
from sidecar.stores.redis_wire import CONNECT_TIME, ConnectError, Wire, dial, within
from sidecar.stores.resp import Parser, Reply, ReplyError, WireError, command

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.stores.redis_url import Place, Target

HEARTBEAT: Final = 2.0
"""Seconds between two pings of a subscription."""
ANSWER_TIME: Final = 1.0
"""Seconds for the answer; without one the connection is given up."""
RETRY: Final = 0.5
"""Seconds between two attempts to subscribe."""
VERSION: Final = b"1"


class Subscription:
    """Hears purges for ever; reconnects by itself."""

    def __init__(
        self,
        target: Target,
        locate: Callable[[], Awaitable[Place]],
        clock: Clock,
        channel: bytes,
        origin: bytes,
        heard: Callable[[Purged, Sequence[bytes]], None],
        gap: Callable[[], None],
    ) -> None:
        """`heard` gets what other origins purged; `gap` is called whenever messages may have been missed."""
        self._target = target
        self._locate = locate
        self._clock = clock
        self._channel = channel
        self._origin = origin
        self._heard = heard
        self._gap = gap
        self._keeper: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self.active = False

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    def message(self, kind: Purged, values: Sequence[bytes]) -> bytes:
        """What to publish."""
        return command((VERSION, self._origin, kind.value, *values))

    async def _keep(self) -> None:
        while True:
            self._woken.clear()
            wire = Wire(self._clock, lost=self._wake, pushed=self._pushed)
            try:
                await within(self._clock, CONNECT_TIME, self._subscribe(wire))
                self.active = True
                self._gap()
                await self._stay(wire)
            except (ConnectError, TimeoutError):
                pass
            finally:
                self.active = False
                wire.close()
            await self._clock.sleep(RETRY)

    async def _subscribe(self, wire: Wire) -> None:
        await dial(await self._locate(), self._target, wire)
        answer = await wire.ask(b"SUBSCRIBE", self._channel)
        if isinstance(answer, (Lost, ReplyError)):
            raise ConnectError("subscribe", "the subscription was refused")

    async def _stay(self, wire: Wire) -> None:
        """While the connection stands and the server answers. Raises TimeoutError."""
        while not wire.closed:
            timer = self._clock.arm(self._clock.now() + HEARTBEAT, self._woken.set)
            await self._woken.wait()
            timer.cancel()
            self._woken.clear()
            if not wire.closed:
                await within(self._clock, ANSWER_TIME, _ping(wire))

    def _wake(self, wire: Wire, why: str) -> None:
        self._woken.set()

    def _pushed(self, reply: list[Reply]) -> None:
        match reply:
            case [_, _, bytes() as body]:
                message = _read(body)
            case _:
                message = None
        if message is None:
            self._gap()  # from another version: it may mean anything
            return
        origin, kind, values = message
        if origin != self._origin:
            self._heard(kind, values)


async def _ping(wire: Wire) -> None:
    await wire.ask(b"PING")


def _read(body: bytes) -> tuple[bytes, Purged, list[bytes]] | None:
    try:
        replies = Parser().feed(body)
        match replies:
            case [[version, bytes() as origin, kind, *values]] if version == VERSION:
                return origin, Purged(kind), [value for value in values if isinstance(value, bytes)]
    except (WireError, ValueError):
        pass
    return None

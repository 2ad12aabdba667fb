"""Commands to the Redis or Valkey that keeps batches. Nobody waits less than it takes, within `PATIENCE`.

The cache's links give up after 50 ms, because a request waits for them; a batch rather waits than loses its
store. A cluster's nodes are found by what they answer: `MOVED` says where a slot is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from hashlib import sha1
from typing import TYPE_CHECKING, Final

from sidecar.batch.jobs import StoreFailed, StoreFull
from sidecar.stores.found import Lost
from sidecar.stores.redis_nodes import OneNode, slot
from sidecar.stores.redis_url import Place, Target, Topology
from sidecar.stores.redis_wire import CONNECT_TIME, ConnectError, Wire, dial, within
from sidecar.stores.resp import Reply, ReplyError
from sidecar.stores.stats import SharedStats

if TYPE_CHECKING:
    from sidecar.clock import Clock

PATIENCE: Final = 10.0
"""Seconds that an answer may take: a server that saves, or a large file."""
MOST_REDIRECTS: Final = 5


class Refused(StoreFailed):
    """The server answered with an error; `kind` is its first word."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class RedisCalls:
    """A connection to each server that is needed, made when it is."""

    def __init__(self, target: Target, clock: Clock) -> None:
        self.target = target
        self._clock = clock
        self._clustered = target.topology is Topology.CLUSTER
        # Finds the primary, of Sentinels where there are some; it is never started.
        self._one = OneNode(target, clock, SharedStats(), lambda _: None)
        self._primary: Place | None = None
        self._seeds = list(target.places)
        self._slots: dict[int, Place] = {}
        self._wires: dict[tuple[Place, bool], Wire] = {}
        self._connecting = asyncio.Lock()
        self._closed = True

    def open(self) -> None:
        self._closed = False

    def close(self) -> None:
        self._closed = True
        for wire in tuple(self._wires.values()):
            wire.close()
        self._wires.clear()

    async def script(
        self, text: bytes, keys: Sequence[bytes], *arguments: bytes, aside: bool = False
    ) -> Reply:
        """Runs a Lua script. Raises StoreFailed, as `ask`."""
        digest = sha1(text, usedforsecurity=False).hexdigest().encode()
        rest = (b"%d" % len(keys), *keys, *arguments)
        try:
            return await self.ask(keys[0], b"EVALSHA", digest, *rest, aside=aside)
        except Refused as error:
            if error.kind != "NOSCRIPT":
                raise
        return await self.ask(keys[0], b"EVAL", text, *rest, aside=aside)

    async def ask(self, key: bytes, *parts: bytes, aside: bool = False) -> Reply:
        """The answer of the server that has `key`; `aside`: on a connection of its own, to wait there.

        Raises StoreFailed; what was asked may have been done then, unless it is `Refused` or StoreFull.
        """
        failure = self._failed("its nodes do not agree where the batch is")
        for _ in range(MOST_REDIRECTS):
            place = await self._place(key)
            try:
                wire = await self._wire(place, aside=aside)
            except StoreFailed as error:
                if not self._clustered or self._closed:
                    raise
                failure = error  # the next node may know more; nothing was asked yet
                continue
            future = wire.ask(*parts)
            timer = self._clock.arm(self._clock.now() + PATIENCE, partial(wire.close, "timeout"))
            try:
                answer = await future
            finally:
                timer.cancel()
            if isinstance(answer, Lost):
                self._forget(place)
                raise self._failed("no answer")
            if not isinstance(answer, ReplyError):
                return answer
            if answer.kind == "MOVED" and self._clustered:
                self._moved(place, answer.text)
                continue
            if answer.kind == "OOM":
                raise StoreFull(
                    "there is no room for batches in Redis: raise its maxmemory, or DELETE old batches"
                )
            if answer.kind in {"READONLY", "MASTERDOWN"}:  # it is no primary any more
                wire.close("readonly")
                self._forget(place)
            raise Refused(str(self._failed(answer.text)), answer.kind)
        raise failure

    def _failed(self, why: str) -> StoreFailed:
        return StoreFailed(f"the batch store {self.target}: {why}")

    async def _place(self, key: bytes) -> Place:
        if self._clustered:
            return self._slots.get(slot(key)) or self._seeds[0]
        if self._primary is None:
            try:
                self._primary = await self._one.locate()
            except ConnectError as error:
                raise self._failed(str(error)) from None
        return self._primary

    def _moved(self, place: Place, text: str) -> None:
        """`MOVED 3999 127.0.0.1:6381`; an empty host is that of who says it (redis.io, cluster spec)."""
        _, number, where = text.split(" ")[:3]
        host, _, port = where.rpartition(":")
        self._slots[int(number)] = Place(host or place.host, int(port))

    def _forget(self, place: Place) -> None:
        """It did not answer: another has its slots, or knows who has."""
        self._primary = None
        for number in [number for number, known in self._slots.items() if known == place]:
            del self._slots[number]
        self._seeds.append(self._seeds.pop(0))

    async def _wire(self, place: Place, *, aside: bool) -> Wire:
        wire = self._wires.get((place, aside))
        if wire is not None and not wire.closed:
            return wire
        async with self._connecting:
            if self._closed:
                raise self._failed("it is closed")
            wire = self._wires.get((place, aside))
            if wire is not None and not wire.closed:
                return wire
            wire = Wire(self._clock)
            try:
                await within(self._clock, CONNECT_TIME, self._connect(place, wire))
            except (ConnectError, TimeoutError) as error:
                wire.close()
                self._forget(place)
                raise self._failed(str(error) or f"{place}: no answer in time") from None
            except BaseException:
                wire.close()
                raise
            self._wires[place, aside] = wire
            return wire

    async def _connect(self, place: Place, wire: Wire) -> None:
        await dial(place, self.target, wire)
        role = await wire.ask(b"ROLE")
        if isinstance(role, list) and role and role[0] != b"master" and not self._clustered:
            raise ConnectError("replica", f"{place}: not the primary")

"""Which server a key lives on: the one, the one that the Sentinels name, or a node of a cluster."""

from __future__ import annotations

import asyncio
from binascii import crc_hqx
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.stores.redis_link import Link
from sidecar.stores.redis_url import Login, Place, Target, Topology
from sidecar.stores.redis_wire import ConnectError, Wire, dial, expect, within
from sidecar.stores.resp import Reply

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.stores.stats import SharedStats

SLOTS: Final = 16384
ASKING_TIME: Final = 0.3
"""Seconds for a Sentinel or a node to say where the others are."""
REFRESH: Final = 30.0
"""Seconds after which the map of a cluster is read again."""
REFRESH_SOON: Final = 0.25
"""The same when something does not fit it any more: an election takes longer."""

Changed = Callable[[str], None]


class Nodes(Protocol):
    """`link` gives None where nobody is known to hold the key."""

    clustered: bool

    def start(self) -> None: ...
    def link(self, key: bytes) -> Link | None: ...
    def links(self) -> list[Link]:
        """Every primary."""
        ...

    async def locate(self) -> Place:
        """A server that hears what is published. Raises ConnectError."""
        ...

    @property
    def ready(self) -> bool: ...
    async def close(self) -> None: ...


def make_nodes(target: Target, clock: Clock, stats: SharedStats, changed: Changed) -> Nodes:
    if target.topology is Topology.CLUSTER:
        return ClusterNodes(target, clock, stats, changed)
    return OneNode(target, clock, stats, changed)


class OneNode:
    """A single server, or the primary that Sentinels know of."""

    clustered = False

    def __init__(self, target: Target, clock: Clock, stats: SharedStats, changed: Changed) -> None:
        self._target = target
        self._clock = clock
        self._sentinels = list(target.places)
        plain = replace(target, sentinel_login=Login())
        self._link = Link(plain, self.locate, clock, stats, changed, lambda: None)
        self._links = [self._link]

    def start(self) -> None:
        self._link.start()

    def link(self, key: bytes) -> Link:
        return self._link

    def links(self) -> list[Link]:
        return self._links

    @property
    def ready(self) -> bool:
        return self._link.ready

    async def close(self) -> None:
        await self._link.close()

    async def locate(self) -> Place:
        if self._target.topology is not Topology.SENTINEL:
            return self._target.places[0]
        ask = replace(self._target, login=self._target.sentinel_login, database=0)
        command = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._target.service.encode())
        problem = "none of the Sentinels answers"
        for place in tuple(self._sentinels):
            try:
                reply = await within(self._clock, ASKING_TIME, question(place, ask, self._clock, *command))
            except (ConnectError, TimeoutError):
                self._sentinels.append(self._sentinels.pop(0))
                continue
            match reply:
                case [bytes() as host, bytes() as port] if port.isdigit():
                    return Place(host.decode("utf-8", "replace"), int(port))
            problem = f"the Sentinels know no service {self._target.service}"
            self._sentinels.append(self._sentinels.pop(0))
        raise ConnectError("sentinel", problem)


class ClusterNodes:
    """One link to each primary; the map of slots is read in the background."""

    clustered = True

    def __init__(self, target: Target, clock: Clock, stats: SharedStats, changed: Changed) -> None:
        self._target = target
        self._clock = clock
        self._stats = stats
        self._changed = changed
        self._starts: list[int] = []
        self._owners: list[Link | None] = []
        self._by_place: dict[Place, Link] = {}
        self._wanted = asyncio.Event()
        self._mapped = 0.0
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    def link(self, key: bytes) -> Link | None:
        at = bisect_right(self._starts, slot(key)) - 1
        return self._owners[at] if at >= 0 else None

    def links(self) -> list[Link]:
        return list(self._by_place.values())

    @property
    def ready(self) -> bool:
        return bool(self._by_place) and all(link.ready for link in self._by_place.values())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        for link in self._by_place.values():
            await link.close()

    async def locate(self) -> Place:
        for place, link in self._by_place.items():
            if link.ready:
                return place
        raise ConnectError("cluster", "no node of the cluster answers")

    async def _keep(self) -> None:
        while True:
            self._wanted.clear()
            try:
                await self._read_map()
            except ConnectError as error:
                self._stats.errors[error.kind] += 1
                self._changed(str(error))
                await self._clock.sleep(REFRESH_SOON)
                continue
            await self._clock.sleep(REFRESH_SOON)
            timer = self._clock.arm(self._clock.now() + REFRESH, self._wanted.set)
            await self._wanted.wait()
            timer.cancel()

    async def _read_map(self) -> None:
        for place in dict.fromkeys([*self._by_place, *self._target.places]):
            asked = question(place, self._target, self._clock, b"CLUSTER", b"SLOTS")
            try:
                reply = await within(self._clock, ASKING_TIME, asked)
            except (ConnectError, TimeoutError):
                continue
            if ranges := _ranges(reply, place):
                await self._adopt(ranges)
                return
        raise ConnectError("cluster", "no node of the cluster tells where the keys are")

    async def _adopt(self, ranges: list[tuple[int, int, Place]]) -> None:
        places = {place for _, _, place in ranges}
        for place in places - self._by_place.keys():
            link = self._by_place[place] = Link(
                self._target, _at(place), self._clock, self._stats, self._link_changed, self._wanted.set
            )
            link.start()
        starts: list[int] = []
        owners: list[Link | None] = []
        covered = 0
        for first, last, place in sorted(ranges, key=lambda each: each[:2]):
            if first > covered:
                starts.append(covered)
                owners.append(None)
            starts.append(first)
            owners.append(self._by_place[place])
            covered = last + 1
        if covered < SLOTS:
            starts.append(covered)
            owners.append(None)
        self._starts, self._owners = starts, owners
        for place in self._by_place.keys() - places:
            await self._by_place.pop(place).close()

    def _link_changed(self, why: str) -> None:
        if why:
            self._wanted.set()
        self._changed("" if self.ready else why or "some nodes do not answer yet")


def slot(key: bytes) -> int:
    """The hash slot of a key (Redis Cluster specification, "Key distribution model")."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0) % SLOTS


async def question(place: Place, target: Target, clock: Clock, *command: bytes) -> Reply:
    """Asks one thing on a connection of its own. Raises ConnectError."""
    wire = Wire(clock)
    try:
        await dial(place, target, wire)
        return expect(place, wire, await wire.ask(*command))
    finally:
        wire.close()


def _at(place: Place) -> Callable[[], asyncio.Future[Place]]:
    def locate() -> asyncio.Future[Place]:
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        future.set_result(place)
        return future

    return locate


def _ranges(reply: Reply, asked: Place) -> list[tuple[int, int, Place]]:
    """First slot, last slot and primary; what is not understood is left out."""
    found = []
    for row in reply if isinstance(reply, list) else ():
        match row:
            case [int() as first, int() as last, [host, int() as port, *_], *_]:
                # A node that does not know its own name says nothing: it is the one that was asked.
                name = host.decode("utf-8", "replace") if isinstance(host, bytes) else ""
                found.append((first, last, Place(name or asked.host, port)))
    return found

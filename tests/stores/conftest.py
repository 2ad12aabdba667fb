"""One server per test process, emptied before each test that uses it; stores that end with their test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from sidecar.clock import Clock, Ids, SystemClock
from sidecar.headers import RESPONSE_KINDS, Lines
from sidecar.stores.memory import Memory
from sidecar.stores.redis import RedisStore
from sidecar.stores.redis_server import RedisServer
from sidecar.stores.redis_url import parse
from sidecar.stores.tiered import Tiered
from tests.stores.records import MIB, until
from tests.support.valkey import Valkey, running

Open = Callable[..., Awaitable[RedisStore]]
OpenTiered = Callable[..., Awaitable[Tiered]]


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Valkey]:
    with running() as server:
        yield server


@pytest.fixture
def server(shared_server: Valkey) -> Valkey:
    """Empty, in good health; a test that harms its server starts one of its own."""
    shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture
async def open_store() -> AsyncIterator[Open]:
    """Makes a store for a URL and waits until it is there, unless told not to."""
    opened: list[RedisServer | RedisStore] = []

    async def make(url: str, *, ready: bool = True, clock: Clock | None = None, **more: float) -> RedisStore:
        lines = Lines(RESPONSE_KINDS)
        clock = clock or SystemClock()
        server = RedisServer(parse(url), clock)
        store = RedisStore(server, clock, Ids(), lines, **more)  # type: ignore[arg-type]
        opened.extend((store, server))
        server.start()
        store.start()
        if ready:
            await until(lambda: store.ready and store.subscribed)
        return store

    yield make
    for each in opened:
        await each.close()


@pytest.fixture
async def open_tiered(open_store: Open) -> AsyncIterator[OpenTiered]:
    """The same below a memory store of 4 MiB."""
    tiers: list[Tiered] = []

    async def make(url: str, *, ready: bool = True, recheck: float = 10.0) -> Tiered:
        shared = await open_store(url, ready=ready)
        clock = SystemClock()
        tiers.append(Tiered(Memory(4 * MIB, clock), shared, clock, recheck))
        return tiers[-1]

    yield make
    await asyncio.gather(*(tiered.close() for tiered in tiers))

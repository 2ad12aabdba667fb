"""What every store does: memory, a real server, and both together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sidecar.clock import SystemClock
from sidecar.stores.entry import MOST_VARIANTS, Entry, Variants
from sidecar.stores.memory import Memory
from sidecar.stores.protocol import Store
from sidecar.stores.tiered import Tiered
from tests.stores.conftest import Open, OpenTiered
from tests.stores.records import MIB, described, entry, lifetime, same, variants
from tests.support.valkey import Valkey

MakeStore = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["memory", "redis", "tiered", "space"])
async def store(
    request: pytest.FixtureRequest, server: Valkey, open_store: Open, open_tiered: OpenTiered
) -> Store:
    match request.param:
        case "memory":
            clock = SystemClock()
            return Tiered(Memory(4 * MIB, clock), None, clock)
        case "redis":
            return await open_store(server.url)
        case "tiered":
            return await open_tiered(server.url)
        case _:
            return (await open_tiered(server.url)).space("n")


class TestContract:
    async def test_what_was_never_stored_is_a_miss(self, store: Store) -> None:
        """An unknown key gives None."""
        assert await store.get(b"n:v1:unknown") is None

    async def test_a_response_comes_back_as_it_was(self, store: Store) -> None:
        """Status, header lines in their order and spelling, body, lifetime, tags: nothing changes."""
        given = entry(bytes(range(256)) * 20, tags=("a", "é"))
        assert await store.set(b"n:v1:k", given)
        assert same(await store.get(b"n:v1:k"), given)

    async def test_variants_come_back_as_they_were(self, store: Store) -> None:
        """The list that stands at a varying key is a record, too."""
        given = variants(b"n:v1:one", b"n:v1:two")
        assert await store.set(b"n:v1:k", given)
        assert same(await store.get(b"n:v1:k"), given)

    async def test_the_last_write_stands(self, store: Store) -> None:
        """A second set of a key replaces the first."""
        await store.set(b"n:v1:k", entry(b"old", tags=("old",)))
        await store.set(b"n:v1:k", entry(b"new", tags=("new",)))
        found = await store.get(b"n:v1:k")
        assert isinstance(found, Entry)
        assert found.body == b"new"

    async def test_nothing_is_found_past_its_time(self, store: Store) -> None:
        """`kept_until` ends a record, whatever the store."""
        await store.set(b"n:v1:k", entry(kept=0.15))
        await store.set(b"n:v1:v", variants(b"n:v1:one", kept=0.15))
        await asyncio.sleep(0.2)
        assert await store.get(b"n:v1:k") is None
        assert await store.get(b"n:v1:v") is None

    async def test_what_is_past_its_time_is_not_stored(self, store: Store) -> None:
        """A record that is of no use already is not kept."""
        await store.set(b"n:v1:k", entry(kept=-1))
        assert await store.get(b"n:v1:k") is None

    async def test_delete_drops_the_named_keys_only(self, store: Store) -> None:
        """Others stay, and the count is of those that were there."""
        for key in (b"n:v1:a", b"n:v1:b", b"n:v1:c"):
            await store.set(key, entry())
        assert await store.delete(b"n:v1:a", b"n:v1:b", b"n:v1:never") == 2
        assert await store.get(b"n:v1:a") is None
        assert await store.get(b"n:v1:b") is None
        assert await store.get(b"n:v1:c") is not None

    async def test_a_prefix_drops_all_that_starts_so(self, store: Store) -> None:
        """Characters that mean something in patterns mean themselves."""
        await store.set(b"n:v1:a*b:1", entry())
        await store.set(b"n:v1:a*b:2", entry())
        await store.set(b"n:v1:axb:3", entry())
        assert await store.purge_prefix(b"n:v1:a*b") == 2
        assert await store.get(b"n:v1:a*b:1") is None
        assert await store.get(b"n:v1:axb:3") is not None

    async def test_a_tag_drops_all_that_have_it(self, store: Store) -> None:
        """And nothing that has other tags only."""
        await store.set(b"n:v1:1", entry(tags=("candidate:1", "all")))
        await store.set(b"n:v1:2", entry(tags=("candidate:2", "all")))
        await store.set(b"n:v1:3", entry(tags=("candidate:1",)))
        await store.set(b"n:v1:4", entry())
        assert await store.purge_tag("candidate:1") == 2
        assert [bool(await store.get(b"n:v1:%d" % number)) for number in (1, 2, 3, 4)] == [
            False,
            True,
            False,
            True,
        ]
        assert await store.purge_tag("all") == 1

    async def test_many_keys_of_one_tag_go_in_one_purge(self, store: Store) -> None:
        """A purge that takes several steps on a server is complete when it returns."""
        for number in range(600):
            await store.set(b"n:v1:%d" % number, entry(b"", tags=("many",)))
        await asyncio.sleep(0.05)  # a tiered store writes to the server in the background
        assert await store.purge_tag("many") >= 590
        assert await store.purge_prefix(b"n:") == 0

    async def test_touch_gives_a_new_lifetime(self, store: Store) -> None:
        """The response stays; what it may be used for changes."""
        await store.set(b"n:v1:k", entry(kept=5, tags=("t",)))
        longer = lifetime(500)
        assert await store.touch(b"n:v1:k", longer, ("t",))
        found = await store.get(b"n:v1:k")
        assert isinstance(found, Entry)
        assert (found.lifetime, found.body) == (longer, b"a body")

    async def test_touch_of_nothing_does_nothing(self, store: Store) -> None:
        """Neither an unknown key nor variants get a lifetime."""
        await store.set(b"n:v1:v", variants(b"n:v1:one"))
        assert not await store.touch(b"n:v1:k", lifetime())
        assert not await store.touch(b"n:v1:v", lifetime())
        assert await store.get(b"n:v1:k") is None

    @pytest.mark.parametrize("purge", ["key", "prefix", "tag"])
    async def test_what_was_asked_for_before_a_purge_is_not_stored_after_it(
        self, store: Store, purge: str
    ) -> None:
        """The upstream may have answered before the change that the purge tells of."""
        mark = store.mark()
        match purge:
            case "key":
                await store.delete(b"n:v1:k")
            case "prefix":
                await store.purge_prefix(b"n:")
            case _:
                await store.purge_tag("t")
        await store.set(b"n:v1:k", entry(tags=("t",)), mark)
        assert await store.get(b"n:v1:k") is None
        await store.set(b"n:v1:k", entry(tags=("t",)), store.mark())
        assert await store.get(b"n:v1:k") is not None

    async def test_a_purge_of_others_does_not_matter(self, store: Store) -> None:
        """Only what the purge names is refused."""
        mark = store.mark()
        await store.delete(b"n:v1:other")
        await store.purge_tag("other")
        await store.set(b"n:v1:k", entry(tags=("t",)), mark)
        assert await store.get(b"n:v1:k") is not None

    async def test_variants_are_bounded(self, store: Store) -> None:
        """Whatever is added, at most `MOST_VARIANTS` keys stand at a varying key."""
        for number in range(MOST_VARIANTS + 10):
            found = await store.get(b"n:v1:k")
            there = found if isinstance(found, Variants) else variants()
            await store.set(b"n:v1:k", variants(b"n:v1:%d" % number).merged(there))
        found = await store.get(b"n:v1:k")
        assert isinstance(found, Variants)
        assert len(found.keys) == MOST_VARIANTS
        assert found.keys[-1] == b"n:v1:%d" % (MOST_VARIANTS + 9), described(found)

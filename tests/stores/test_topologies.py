"""The ways a URL can lead to a server: TCP, Sentinels, a cluster."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.clock import SystemClock
from sidecar.stores.entry import Entry
from sidecar.stores.redis_buckets import SharedBuckets
from sidecar.stores.redis_nodes import slot
from sidecar.stores.redis_server import RedisServer
from sidecar.stores.redis_url import parse
from tests.stores.conftest import Open, OpenTiered
from tests.stores.records import entry, lifetime, until, variants
from tests.support.origin import self_signed
from tests.support.valkey import Valkey, cluster, free_port, running, slow_wire

NODES = 3


async def test_tcp(open_store: Open) -> None:
    """A host and a port."""
    with running(port=free_port()) as server:
        store = await open_store(f"redis://127.0.0.1:{server.port}/2")
        assert await store.set(b"n:v1:k", entry())
        assert await store.get(b"n:v1:k") is not None
        assert server.stored() == set(), "they are in database 2"


async def test_tls(server: Valkey, open_store: Open, tmp_path: Path) -> None:
    """`rediss` believes only the authority it is told of."""
    certificate = self_signed(tmp_path)
    async with slow_wire(server, certificate.server()) as wire:
        base = f"rediss://127.0.0.1:{wire.port}"
        store = await open_store(f"{base}?ssl_ca_certs={certificate.path}")
        assert await store.set(b"n:v1:k", entry())
        assert await store.get(b"n:v1:k") is not None
        doubtful = await open_store(base, ready=False)
        await until(lambda: doubtful.stats.errors["connect"])
        assert await doubtful.get(b"n:v1:k") is None
        careless = await open_store(f"{base}?ssl_cert_reqs=none")
        assert await careless.get(b"n:v1:k") is not None


async def test_a_prefix_of_its_own(server: Valkey, open_store: Open) -> None:
    """Two sidecars with different prefixes share nothing on one server."""
    one = await open_store(server.url, prefix=b"one:")
    two = await open_store(server.url, prefix=b"two:")
    await one.set(b"n:v1:k", entry(tags=("t",)))
    assert await two.get(b"n:v1:k") is None
    assert await two.purge_prefix(b"") == 0
    assert await two.purge_tag("t") == 0
    assert await one.get(b"n:v1:k") is not None
    assert all(key.startswith(b"one:") for key in server.stored())


class TestSentinel:
    @pytest.fixture
    def servers(self, tmp_path: Path) -> Iterator[tuple[Valkey, Valkey, Valkey]]:
        """A primary, its replica, and a Sentinel that watches them."""
        with contextlib.ExitStack() as stack:
            primary = stack.enter_context(running("--repl-diskless-sync-delay", "0", port=free_port()))
            replica_of = ("--replicaof", "127.0.0.1", str(primary.port))
            replica = stack.enter_context(running(*replica_of, port=free_port()))
            end = time.monotonic() + 5
            while b"master_link_status:up" not in _text(replica.ask("INFO", "replication")):
                assert time.monotonic() < end
                time.sleep(0.01)
            settings = tmp_path / "sentinel.conf"
            settings.write_text(
                f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
                "sentinel down-after-milliseconds main 300\n"
                "sentinel failover-timeout main 1000\n"
            )
            sentinel = stack.enter_context(running(str(settings), "--sentinel", port=free_port()))
            yield primary, replica, sentinel

    async def test_it_follows_the_primary(
        self, servers: tuple[Valkey, Valkey, Valkey], open_store: Open
    ) -> None:
        """After a failover the new primary is used, and a Sentinel that is gone is passed over."""
        primary, replica, sentinel = servers
        dead = free_port()
        store = await open_store(f"redis+sentinel://127.0.0.1:{dead},127.0.0.1:{sentinel.port}/main")
        assert await store.set(b"n:v1:k", entry())
        await until(lambda: b"nextvision:n:v1:k" in replica.stored())
        await until(lambda: _replicas(sentinel))
        primary.kill()
        assert await store.get(b"n:v1:other") is None
        await until(lambda: store.ready, 15)
        assert await store.get(b"n:v1:k") is not None
        assert await store.set(b"n:v1:k2", entry())
        assert b"nextvision:n:v1:k2" in replica.stored()

    async def test_an_unknown_service(self, servers: tuple[Valkey, Valkey, Valkey], open_store: Open) -> None:
        """Is said in the reason."""
        store = await open_store(f"redis+sentinel://127.0.0.1:{servers[2].port}/other", ready=False)
        await until(lambda: store.stats.errors["sentinel"])
        assert "other" in store.stats.reason
        assert await store.get(b"n:v1:k") is None


def _text(reply: object) -> bytes:
    return reply if isinstance(reply, bytes) else b""


def _replicas(sentinel: Valkey) -> bool:
    reply = sentinel.ask("SENTINEL", "REPLICAS", "main")
    return isinstance(reply, list) and len(reply) > 0


class TestCluster:
    @pytest.fixture
    def nodes(self) -> Iterator[list[Valkey]]:
        """Three primaries that share the slots."""
        with cluster(NODES) as nodes:
            yield nodes

    async def test_rate_limits_spread_over_the_nodes(self, nodes: list[Valkey]) -> None:
        """The script runs where its key lives; two replicas share each client's budget."""
        servers = [
            RedisServer(parse(f"redis+cluster://127.0.0.1:{node.port}"), SystemClock()) for node in nodes[:2]
        ]
        for server in servers:
            server.start()
        await until(lambda: all(server.nodes.ready for server in servers))
        replicas = [SharedBuckets(server.nodes, "all:0", 3600, 5 * 3600) for server in servers]
        for client in "abcdefgh":
            answers = [await replica.take(client) for _ in range(4) for replica in replicas]
            assert sum(answer is not None and answer > 0 for answer in answers) == 5
        assert sum(bool(node.stored()) for node in nodes) >= 2
        for server in servers:
            await server.close()

    async def test_keys_spread_over_the_nodes(self, nodes: list[Valkey], open_store: Open) -> None:
        """Every operation finds its node, given one that is gone and one that is there."""
        store = await open_store(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{nodes[1].port}")
        keys = [b"n:v1:%d" % number for number in range(60)]
        for key in keys:
            assert await store.set(key, entry(key, tags=("t", "u"))), store.stats.errors
        for key in keys:
            found = await store.get(key)
            assert isinstance(found, Entry)
            assert found.body == key
        records = [sum(b"#" not in key for key in node.stored()) for node in nodes]
        assert sum(records) == 60
        assert min(records) > 0
        assert await store.touch(keys[0], lifetime(), ("t", "u"))
        assert await store.set(b"n:v1:v", variants(b"n:v1:one"))
        assert await store.set(b"n:v1:v", variants(b"n:v1:two"))
        assert await store.delete(*keys[:10], b"n:v1:never") == 10
        assert await store.purge_tag("t") == 50
        assert await store.purge_prefix(b"n:") == 1
        claim = await store.locks.claim(b"n:v1:k", 30)
        assert claim is not None
        assert claim.shared
        assert await store.locks.claim(b"n:v1:k", 30) is None

    async def test_purges_are_heard_on_any_node(self, nodes: list[Valkey], open_tiered: OpenTiered) -> None:
        """Wherever each replica listens."""
        one = await open_tiered(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        two = await open_tiered(f"redis+cluster://127.0.0.1:{nodes[2].port}")
        await one.set(b"n:v1:k", entry(tags=("t",)))
        await until(lambda: any(b"nextvision:n:v1:k" in node.stored() for node in nodes))
        assert await two.get(b"n:v1:k") is not None
        assert await one.purge_tag("t") == 1
        await until(lambda: two.look(b"n:v1:k") is None)

    async def test_a_slot_that_moved_is_found_again(self, nodes: list[Valkey], open_store: Open) -> None:
        """The answer that says so has the map read anew."""
        store = await open_store(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        key = b"n:v1:k"
        number = str(slot(b"nextvision:" + key))
        assert await store.set(key, entry())
        owner = next(node for node in nodes if b"nextvision:n:v1:k" in node.stored())
        heir = nodes[(nodes.index(owner) + 1) % NODES]
        owner.ask("FLUSHALL")
        heir_id = _text(heir.ask("CLUSTER", "MYID"))
        heir.ask("CLUSTER", "SETSLOT", number, "IMPORTING", _text(owner.ask("CLUSTER", "MYID")))
        for node in (heir, owner, *nodes):
            node.ask("CLUSTER", "SETSLOT", number, "NODE", heir_id)
        assert await store.get(key) is None
        assert store.stats.errors["moved"] == 1
        await until(lambda: store.stats.errors["moved"] == 1)
        end = time.monotonic() + 5
        while not await store.set(key, entry()):
            assert time.monotonic() < end
        assert await store.get(key) is not None
        assert b"nextvision:n:v1:k" in heir.stored()

    async def test_a_dead_node_costs_its_own_keys_only(self, nodes: list[Valkey], open_store: Open) -> None:
        """The others are read and written as before."""
        for node in nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        store = await open_store(f"redis+cluster://127.0.0.1:{nodes[0].port}")
        keys = [b"n:v1:%d" % number for number in range(30)]
        nodes[1].kill()
        await until(lambda: not store.ready)
        written = [await store.set(key, entry()) for key in keys]
        found = [await store.get(key) is not None for key in keys]
        assert 0 < sum(found) < 30
        assert found == written


@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"123456789", 12739), (b"foo", 12182), (b"{user1000}.following", 3443), (b"foo{}{bar}", 8363)],
)
def test_slot(key: bytes, expected: int) -> None:
    """As in the cluster specification: the CRC16 of the key, or of its hash tag."""
    assert slot(key) == expected

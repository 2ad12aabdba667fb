"""The cache as its user runs it: sidecars in processes of their own, alone and with a Valkey they share."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from sidecar.stores import codec
from tests.support.replicas import HOST, Replicas, crowded, everything, records, until_stored
from tests.support.valkey import Valkey, running

CROWD = 1000
SECRET = "S3CRETKEY"
TOKEN = "T0PS3CRET"
POLICIES = {
    "name": "tiny",
    "routes": [
        {
            "name": "items",
            "match": {"path": "/shared/{item}"},
            "cache": {
                "namespace": "items",
                "tags": ["item:{item}"],
                "key": {"query": {"drop": ["key"], "fold": ["address"]}},
            },
        },
        {
            "name": "gated",
            "match": {"method": "GET", "path": "/gated/{item}"},
            "cache": {"namespace": "gated"},
        },
        {
            "name": "personal",
            "match": {"path": "/personal/{item}"},
            "cache": {"namespace": "personal", "ttl": "1m", "key": {"headers": ["authorization"]}},
        },
        {
            "name": "posted",
            "match": {"method": "POST", "path": "/posted/{item}"},
            "cache": {"namespace": "posted", "ttl": "1m", "methods": ["POST"], "key": {"body": "json"}},
        },
    ],
}


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    replicas = Replicas(tmp_path, POLICIES)
    await replicas.app.start()
    yield replicas
    await replicas.close()


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with running() as server:
        yield server


def outcomes(answers: list[tuple[int, str, str]]) -> Counter[tuple[int, bool]]:
    """By status, and whether they joined the fill of another."""
    return Counter((status, "collapsed" in cached) for status, _, cached in answers)


# -- one fill for many ---------------------------------------------------------------------------


async def test_a_crowd_for_a_cold_key_is_one_call(replicas: Replicas) -> None:
    """1,000 clients that ask at once for what nobody has are one call to the upstream."""
    sidecar = await replicas.sidecar()
    path = "/gated/cold"
    crowd = [asyncio.create_task(replicas.get(sidecar, path)) for _ in range(CROWD)]
    await crowded(sidecar, CROWD)
    await replicas.open(path)
    answers = await asyncio.gather(*crowd)
    assert outcomes(answers) == {(200, False): 1, (200, True): CROWD - 1}
    assert {body for _, body, _ in answers} == {'{"path": "/gated/cold"}'}
    assert await replicas.calls(path) == 1


async def test_the_first_client_leaves(replicas: Replicas) -> None:
    """The one whose request went to the upstream hangs up: the others get the answer of that one call."""
    sidecar = await replicas.sidecar()
    path = "/gated/left"
    _, first = await asyncio.open_connection("127.0.0.1", sidecar.port)
    first.write(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    await replicas.until_called(path)
    crowd = [asyncio.create_task(replicas.get(sidecar, path)) for _ in range(CROWD - 1)]
    await crowded(sidecar, CROWD)
    first.transport.abort()
    await crowded(sidecar, CROWD - 1)
    await replicas.open(path)
    answers = await asyncio.gather(*crowd)
    assert outcomes(answers) == {(200, True): CROWD - 1}
    assert await replicas.calls(path) == 1
    assert (await replicas.get(sidecar, path))[2].startswith("sidecar; hit")


async def test_two_sidecars_make_one_call(replicas: Replicas, valkey: Valkey) -> None:
    """A crowd at each of two sidecars with one Valkey is one call in all."""
    both = [await replicas.sidecar(valkey.url) for _ in range(2)]
    path = "/gated/both"
    crowd = [asyncio.create_task(replicas.get(both[each % 2], path)) for each in range(CROWD)]
    for sidecar in both:
        await crowded(sidecar, CROWD // 2)
    await replicas.open(path)
    answers = await asyncio.gather(*crowd)
    assert {status for status, _, _ in answers} == {200}
    assert await replicas.calls(path) == 1


async def test_the_one_that_fills_is_killed(replicas: Replicas, valkey: Valkey) -> None:
    """SIGKILL for the sidecar that fills: the other one asks a second time, and its clients get that."""
    filling, waiting = [await replicas.sidecar(valkey.url) for _ in range(2)]
    path = "/gated/killed"
    lost = asyncio.create_task(replicas.get(filling, path))
    await replicas.until_called(path)
    assert any(b"#lock:" in key for key in valkey.stored())
    crowd = [asyncio.create_task(replicas.get(waiting, path)) for _ in range(100)]
    await crowded(waiting, 100)
    assert await replicas.calls(path) == 1
    await filling.end(signal.SIGKILL)
    with pytest.raises(aiohttp.ClientError):
        await lost
    await replicas.until_called(path, 2)
    await replicas.open(path)
    answers = await asyncio.gather(*crowd)
    assert {status for status, _, _ in answers} == {200}
    assert await replicas.calls(path) == 2


async def test_the_server_freezes_while_one_waits(replicas: Replicas, valkey: Valkey) -> None:
    """Who waits for the fill of another when Valkey freezes goes on alone, at once and once for its crowd."""
    filling, waiting = [await replicas.sidecar(valkey.url) for _ in range(2)]
    path = "/gated/frozen"
    first = asyncio.create_task(replicas.get(filling, path))
    await replicas.until_called(path)
    crowd = [asyncio.create_task(replicas.get(waiting, path)) for _ in range(100)]
    await crowded(waiting, 100)
    assert await replicas.calls(path) == 1
    valkey.freeze()
    await asyncio.wait_for(replicas.until_called(path, 2), 1)
    await replicas.open(path)
    answers = await asyncio.gather(first, *crowd)
    assert {status for status, _, _ in answers} == {200}
    assert await replicas.calls(path) == 2


# -- purging -------------------------------------------------------------------------------------


async def test_a_purge_is_seen_by_the_other(replicas: Replicas, valkey: Valkey) -> None:
    """What one sidecar is told to purge, is gone from the memory of the other one, and from Valkey."""
    here, there = [await replicas.sidecar(valkey.url) for _ in range(2)]
    path = "/shared/shoe"
    await replicas.get(here, path)
    for calls, selector in enumerate(
        (
            {"tag": "item:shoe"},
            {"url": f"http://{HOST}/shared/shoe"},
            {"prefix": f"items:v1:{HOST}:/shared/sh"},
            {"namespace": "items"},
        ),
        start=1,
    ):
        await until_stored(valkey, 1)
        assert (await replicas.get(there, path))[2].startswith("sidecar; hit"), selector
        assert await replicas.calls(path) == calls, selector
        assert await replicas.purge(here, **selector) == 1
        assert not records(valkey), selector
        await asyncio.sleep(0.1)  # far less than a copy is believed without the message
        assert "fwd=uri-miss" in (await replicas.get(there, path))[2], selector
        await until_stored(valkey, 1)
        answer = await replicas.get(here, path)
        assert answer[1] == f'{{"path": "/shared/shoe", "calls": {calls + 1}}}', selector


async def test_purge_of_a_key_that_the_store_shows(replicas: Replicas, valkey: Valkey) -> None:
    """A key as it stands in Valkey, without the product's prefix, can be purged by name."""
    here, there = [await replicas.sidecar(valkey.url) for _ in range(2)]
    for name in ("one", "two"):
        await replicas.get(here, f"/shared/{name}")
        await until_stored(valkey, 1 + (name == "two"))
        await replicas.get(there, f"/shared/{name}")
    key = next(key for key in records(valkey) if b"/shared/one" in key)
    assert await replicas.purge(there, key=key.decode().removeprefix("nextvision:")) == 1
    await asyncio.sleep(0.1)
    assert "fwd=uri-miss" in (await replicas.get(here, "/shared/one"))[2]
    assert (await replicas.get(here, "/shared/two"))[2].startswith("sidecar; hit")


async def test_a_purge_that_the_server_did_not_hear(replicas: Replicas, valkey: Valkey) -> None:
    """A purge while Valkey is frozen holds at once where it was asked for, and everywhere once it is back."""
    here, there = [await replicas.sidecar(valkey.url) for _ in range(2)]
    path = "/shared/shoe"
    for sidecar in (here, there):
        await replicas.get(sidecar, path)
        await until_stored(valkey, 1)
    valkey.freeze()
    await asyncio.wait_for(replicas.purge(here, tag="item:shoe"), 1)
    assert (await replicas.get(here, path))[1] == '{"path": "/shared/shoe", "calls": 2}'
    valkey.thaw()
    for _ in range(250):
        status, body, _ = await replicas.get(there, path)
        assert status == 200
        if body != '{"path": "/shared/shoe", "calls": 1}':
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the other one never heard of it")


# -- statistics, restarts, damage ----------------------------------------------------------------


async def test_the_statistics(replicas: Replicas, valkey: Valkey) -> None:
    """The fields that the app's own cache statistics have, in all and by namespace, and they are right."""
    sidecar = await replicas.sidecar(valkey.url)
    for path in ("/shared/a", "/shared/a", "/shared/a", "/shared/b", "/personal/a"):
        await replicas.get(sidecar, path)
    await until_stored(valkey, 3)
    assert await replicas.purge(sidecar, url=f"http://{HOST}/shared/b") == 1
    stats = await replicas.stats(sidecar)
    counts = {"hits": 2, "misses": 2, "hit_rate_percent": 50.0, "sets": 2, "errors": 0}
    items = stats["namespaces"]["items"]
    assert {name: items[name] for name in counts} == counts
    assert items["deletes"] == 1
    assert items["redis_connected"] is True
    assert items["memory_entries"] == 1
    assert stats["namespaces"]["personal"]["hit_rate_percent"] == 0.0
    assert stats["redis_connected"] is True
    in_all = {"hits": 2, "misses": 3, "hit_rate_percent": 40.0, "sets": 3, "errors": 0}
    assert {name: stats[name] for name in in_all} == in_all
    assert stats["deletes"] >= 1
    stored = sum(each["memory_bytes"] for each in stats["namespaces"].values())
    assert 0 < stored <= stats["memory"]["bytes"] <= 64 * 1024 * 1024


async def test_a_restart_finds_what_was_stored(replicas: Replicas, valkey: Valkey) -> None:
    """The first request after a restart is a hit, as Valkey still has it."""
    before = await replicas.sidecar(valkey.url)
    path = "/shared/kept"
    first = await replicas.get(before, path)
    assert await before.end() == 0
    after = await replicas.sidecar(valkey.url)
    status, body, cached = await replicas.get(after, path)
    assert (status, body) == first[:2]
    assert cached.startswith("sidecar; hit")
    assert await replicas.calls(path) == 1


def damaged(value: bytes) -> dict[str, bytes]:
    """What may stand under a key instead of what belongs there."""
    middle = len(value) // 2
    return {
        "empty": b"",
        "foreign": b'{"geometry": {"lat": 48.8566}}',
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07garbage\x94.",
        "binary": bytes(range(256)) * 40,
        "short": value[:middle],
        "head": value[: codec.STAMP],
        "longer": value + b"more",
        "flipped": value[:middle] + bytes([value[middle] ^ 1]) + value[middle + 1 :],
        "time": value[: codec.LIFETIME_AT + 3] + b"\xff" + value[codec.LIFETIME_AT + 4 :],
        "older": value[:2] + b"\x00" + value[3:],
        "newer": value[:2] + b"\x63" + value[3:],
        "variants": value[:3] + bytes([value[3] ^ codec.VARIANTS]) + value[4:],
        "compressed": value[:3] + bytes([value[3] ^ codec.COMPRESSED]) + value[4:],
    }


async def test_damaged_values_are_misses(replicas: Replicas, valkey: Valkey) -> None:
    """Values that are cut, changed, of other versions or of somebody else are misses, then written anew."""
    before = await replicas.sidecar(valkey.url)
    names = [*damaged(bytes(codec.STAMP + 100)), "list"]
    for name in names:
        await replicas.get(before, f"/shared/{name}")
    await until_stored(valkey, len(names))
    for key in records(valkey):
        name = key.split(b":/shared/")[1].split(b":")[0].decode()
        value = valkey.ask("GET", key)
        assert isinstance(value, bytes)
        if name == "list":
            valkey.ask("DEL", key)
            valkey.ask("RPUSH", key, "not", "ours")
        else:
            valkey.ask("SET", key, damaged(value)[name], "PX", "60000")

    after = await replicas.sidecar(valkey.url)
    for name in names:
        status, body, cached = await replicas.get(after, f"/shared/{name}")
        assert (name, status, body) == (name, 200, f'{{"path": "/shared/{name}", "calls": 2}}')
        assert "fwd=uri-miss" in cached, name
    assert (await replicas.stats(after))["redis"]["damaged"] == len(names) - 1
    assert await after.end() == 0
    last = await replicas.sidecar(valkey.url)
    for name in names:
        assert (await replicas.get(last, f"/shared/{name}"))[2].startswith("sidecar; hit"), name


async def test_foreign_values_where_locks_and_tags_stand(replicas: Replicas, valkey: Valkey) -> None:
    """Somebody else's values under the names of locks and tags neither fail a request nor hold it up."""
    before = await replicas.sidecar(valkey.url)
    await replicas.get(before, "/shared/strange")
    await until_stored(valkey, 1)
    (key,) = records(valkey)
    (tags,) = [key for key in valkey.stored() if b"#tag:" in key]
    assert valkey.ask("DEL", key, tags) == 2
    valkey.ask("SET", tags, "no set")
    valkey.ask("SET", key.replace(b"nextvision:", b"nextvision:#lock:"), "for ever")

    after = await replicas.sidecar(valkey.url)
    status, _, cached = await asyncio.wait_for(replicas.get(after, "/shared/strange"), 5)
    assert status == 200
    assert "fwd=uri-miss" in cached
    assert (await replicas.get(after, "/shared/strange"))[2].startswith("sidecar; hit")


# -- secrets -------------------------------------------------------------------------------------


async def test_no_secret_is_stored(replicas: Replicas, valkey: Valkey) -> None:
    """Neither a dropped parameter nor a credential nor a body is in any key or value, at any time."""
    sidecar = await replicas.sidecar(valkey.url)
    bearer = {"Authorization": f"Bearer {TOKEN}", "X-Api-Key": TOKEN, "Cookie": f"session={TOKEN}"}
    paths = [
        f"/shared/plain?key={SECRET}&address=x",
        f"/shared/first?address=x&key={SECRET}",
        f"/shared/varied?vary=Authorization,X-Api-Key&key={SECRET}",
        f"/personal/mine?key=1&token={SECRET}",
    ]
    watching = asyncio.create_task(seen_until_cancelled(valkey))
    gate = asyncio.create_task(replicas.get(sidecar, f"/gated/g?token={SECRET}", **bearer))
    for path in paths:
        status, _, cached = await replicas.get(sidecar, path, **bearer)
        assert (status, "stored" in cached) == (200, True), path
    other = await replicas.get(sidecar, "/shared/plain?address=X&key=other", **bearer)
    assert other[2].startswith("sidecar; hit")
    body = {"secret": SECRET}
    cookie = {"Cookie": bearer["Cookie"], "X-Api-Key": TOKEN}
    async with replicas.http.post(sidecar.url + "/posted/p", json=body, headers=cookie) as reply:
        assert reply.status == 200
    await asyncio.sleep(0.1)
    await replicas.open("/gated/g")
    await gate
    await until_stored(valkey, 7)
    watching.cancel()
    seen = await watching

    assert sum(b"#lock:" in each for each in seen) >= 1
    whole = b"\n".join(seen | everything(valkey))
    assert b"/shared/varied" in whole
    for secret in (SECRET, TOKEN, quote(TOKEN), "address=x"):
        assert secret.lower().encode() not in whole.lower(), secret
    output = sidecar.output.read_bytes()
    assert SECRET.encode() not in output
    assert TOKEN.encode() not in output


async def seen_until_cancelled(valkey: Valkey) -> set[bytes]:
    """All keys and values, looked at again and again."""
    seen: set[bytes] = set()
    try:
        while True:
            seen |= everything(valkey)
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return seen

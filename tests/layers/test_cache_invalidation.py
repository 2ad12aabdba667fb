"""What makes stored answers invalid: changes through the sidecar, groups, tags, purges."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.invalidation import Uri
from tests.support.clock import settle
from tests.support.script import Bench, Send, answer, ok

HOUR: dict[str, Any] = {"ttl": "1h"}


async def stored(bench: Bench, send: Send, *targets: bytes) -> None:
    """Brings `targets` into the cache."""
    bench.script = [ok(b"old")]
    bench.calls.clear()
    for target in targets:
        await send(target=target)
    assert len(bench.calls) == len(targets)


async def is_hit(bench: Bench, send: Send, target: bytes = b"/", **headers: str) -> bool:
    await settle()
    calls = len(bench.calls)
    await send(target=target, **headers)
    return len(bench.calls) == calls


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "UNHEARD-OF"])
@pytest.mark.parametrize("own_route", [True, False])
async def test_a_change_invalidates_its_target(method: str, own_route: bool) -> None:
    """An unsafe method drops what is stored for its URL, through a route without `cache` too."""
    bench = Bench()
    send = bench.route("cached", cache=HOUR)
    changing = send if own_route else bench.route("plain")
    await stored(bench, send, b"/a", b"/b")
    bench.script = [ok(b"", 204)]
    await changing(method, target=b"/a")
    bench.script = [ok(b"new")]
    assert not await is_hit(bench, send, b"/a")
    assert await is_hit(bench, send, b"/b")


@pytest.mark.parametrize("status", [400, 404, 409, 500, 503])
async def test_a_change_that_failed_invalidates_nothing(status: int) -> None:
    """An error says that nothing was changed (RFC 9111, 4.4)."""
    bench = Bench()
    send = bench.route(cache=HOUR)
    await stored(bench, send, b"/a")
    bench.script = [ok(b"", status)]
    await send("PUT", target=b"/a")
    assert await is_hit(bench, send, b"/a")


@pytest.mark.parametrize("own_route", [True, False])
async def test_what_an_answer_names_is_invalidated(own_route: bool) -> None:
    """`Location` and `Content-Location` of the same origin are dropped; another origin's are not."""
    bench = Bench()
    send = bench.route("cached", cache=HOUR)
    changing = send if own_route else bench.route("plain")
    await stored(bench, send, b"/a", b"/b?x=1", b"/c", b"/d")
    bench.script = [
        answer(
            201,
            b"",
            (b"Location", b"/a"),
            (b"Content-Location", b"http://test/b?x=1"),
            (b"Location", b"http://other/c"),
        )
    ]
    await changing("POST", target=b"/made")
    bench.script = [ok(b"new")]
    hits = [await is_hit(bench, send, target) for target in (b"/a", b"/b?x=1", b"/c", b"/d")]
    assert hits == [False, False, True, True]


async def test_all_variants_are_invalidated() -> None:
    """A change drops every variant of its URL."""
    bench = Bench(ok(b"x", vary="X-Kind"))
    send = bench.route(cache=HOUR)
    for kind in "ab":
        await send(x_kind=kind)
    await send("PUT")
    assert not await is_hit(bench, send, x_kind="a")
    assert not await is_hit(bench, send, x_kind="b")


async def test_a_post_that_is_cached_changes_nothing() -> None:
    """A method that the policy caches is taken for safe."""
    bench = Bench(ok(b"x"))
    send = bench.route(cache={"ttl": "1h", "methods": ["GET", "POST"]})
    await send()
    await send("POST", b"{}")
    assert await is_hit(bench, send)


@pytest.mark.parametrize("settings", [
    {"key": {"headers": ["x-tenant"]}},
    {"methods": ["GET", "POST"], "key": {"body": "json"}},
])  # fmt: skip
async def test_all_keys_of_a_url_are_invalidated(settings: dict[str, Any]) -> None:
    """A change drops what is stored under headers and bodies, too."""
    bench = Bench(ok(b"x"))
    send = bench.route(cache={"ttl": "1h", **settings})
    await send("POST" if "methods" in settings else "GET", x_tenant="a", body=b"")
    await send(x_tenant="b")
    bench.calls.clear()
    await send("DELETE")
    await settle()
    await send("POST" if "methods" in settings else "GET", x_tenant="a", body=b"")
    await send(x_tenant="b")
    assert len(bench.calls) == 3


async def test_groups_are_invalidated_together() -> None:
    """`Cache-Group-Invalidation` drops what `Cache-Groups` put together, of the same origin (RFC 9875)."""
    bench = Bench(ok(b"x", cache_groups='"jobs", "all"'))
    send = bench.route("cached", cache=HOUR)
    plain = bench.route("plain")
    await send(target=b"/a")
    await send(target=b"/b")
    await send(target=b"/a", host=b"other")
    bench.script = [ok(b"", 204, cache_group_invalidation='"jobs"')]
    await plain("POST", target=b"/c")
    bench.script = [ok(b"new")]
    assert not await is_hit(bench, send, b"/a")
    assert not await is_hit(bench, send, b"/b")
    calls = len(bench.calls)
    await send(target=b"/a", host=b"other")
    assert len(bench.calls) == calls


async def test_a_safe_method_invalidates_no_group() -> None:
    """On an answer to GET the field means nothing (RFC 9875, 3)."""
    bench = Bench(ok(b"x", cache_groups='"jobs"'))
    send = bench.route(cache=HOUR)
    await send(target=b"/a")
    bench.script = [ok(b"x", cache_group_invalidation='"jobs"')]
    await send(target=b"/b")
    bench.script = [ok(b"new")]
    assert await is_hit(bench, send, b"/a")


@pytest.mark.parametrize(("tag", "gone"), [
    ("candidate:7", [b"/c/7"]),
    ("jobs", [b"/c/7", b"/c/8"]),
    ("red", [b"/c/7", b"/c/8"]),
    ("blue", [b"/c/7", b"/c/8"]),
    ("candidate:9", []),
])  # fmt: skip
async def test_tags_are_purged(tag: str, gone: list[bytes]) -> None:
    """Tags come from the path's variables, from `Cache-Tag` and from `Surrogate-Key`."""
    bench = Bench(ok(b"x", cache_tag="red, green", surrogate_key="blue yellow"))
    send = bench.route(match={"path": "/c/{id}"}, cache={"ttl": "1h", "tags": ["candidate:{id}", "jobs"]})
    for target in (b"/c/7", b"/c/8"):
        await send(target=target)
    assert await bench.caching.store.purge_tag(tag) == len(gone)
    for target in (b"/c/7", b"/c/8"):
        assert await is_hit(bench, send, target) is (target not in gone)


async def test_a_url_is_purged_with_all_its_variants() -> None:
    """What PURGE does: the number of answers there were, in all routes that may have stored it."""
    bench = Bench(ok(b"x", vary="X-Kind"))
    send = bench.route("one", cache=HOUR)
    other = bench.route("two", match={"path": "/elsewhere"}, cache=HOUR)
    for kind in "abc":
        await send(x_kind=kind)
    assert other is not send
    assert await bench.caching.remove(Uri("http", b"test", b"/")) == 3
    assert not await is_hit(bench, send, x_kind="a")


async def test_statistics_are_kept_by_namespace() -> None:
    """Each namespace counts what it found and did not, and what was stored."""
    bench = Bench(ok(b"x"))
    send = bench.route(cache={"ttl": "10s", "namespace": "geocoding"})
    await send()
    await send()
    await bench.clock.advance(11)
    await send()
    shown = bench.caching.store.stats()["namespaces"]
    assert isinstance(shown, dict)
    counts = shown["geocoding"]
    assert (counts["sets"], counts["hits"] + counts["misses"]) == (2, 3)

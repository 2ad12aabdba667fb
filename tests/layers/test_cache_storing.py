"""What the cache layer keeps, and for whom: one layer's pipeline over a script, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.verdict import Verdict
from sidecar.errors import BodyBroken
from sidecar.exchange import Stream
from tests.support.script import Bench, content, ok, shown, stated

HOUR: dict[str, Any] = {"cache": {"ttl": "1h"}}


async def test_a_miss_is_stored_and_hit() -> None:
    """The second request gets the stored answer with its `Age` and what is left of its freshness."""
    bench = Bench(ok(b"one", content_type="text/plain"), ok(b"two"))
    send = bench.route(**HOUR)
    first = await send()
    assert (first.body, shown(first, "age")) == (b"one", None)
    assert shown(first, "cache-status") == "sidecar; fwd=uri-miss; fwd-status=200; stored"
    await bench.clock.advance(60)
    second = await send()
    assert (second.status, second.body, shown(second, "content-type")) == (200, b"one", "text/plain")
    assert (shown(second, "age"), shown(second, "cache-status")) == ("60", "sidecar; hit; ttl=3540")
    assert len(bench.calls) == 1
    assert bench.outcomes == ["miss", "hit"]


async def test_outcomes_are_counted() -> None:
    """What the cache did is counted by route, and noted on each exchange."""
    bench = Bench(ok())
    send = bench.route(**HOUR)
    await send()
    await send()
    await send("DELETE")
    assert bench.metrics.route("all", "app").cache == {"miss": 1, "hit": 1, "bypass": 1}
    assert bench.outcomes == ["miss", "hit", "bypass"]


async def test_the_ttl_of_the_policy_ends() -> None:
    """Where the origin says nothing, an answer is fresh for the policy's `ttl` and no longer."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(**HOUR)
    await send()
    await bench.clock.advance(3599)
    assert (await send()).body == b"one"
    await bench.clock.advance(1)
    assert (await send()).body == b"two"


@pytest.mark.parametrize("headers", [
    {"cache_control": "max-age=10"},
    {"cache_control": "max-age=9999, s-maxage=10"},
    {"expires": "Tue, 14 Nov 2023 22:13:30 GMT"},
    {"cdn_cache_control": "max-age=10", "cache_control": "max-age=9999"},
])  # fmt: skip
async def test_the_origins_freshness_comes_first(headers: dict[str, Any]) -> None:
    """What the origin states holds, though the policy's `ttl` is longer."""
    bench = Bench(ok(b"one", **headers), ok(b"two"))
    send = bench.route(**HOUR)
    await send()
    await bench.clock.advance(9)
    assert (await send()).body == b"one"
    await bench.clock.advance(1)
    assert (await send()).body == b"two"


async def test_the_origins_longer_freshness_comes_first() -> None:
    """The origin may state more than the policy would."""
    bench = Bench(ok(b"one", cache_control="max-age=7200"), ok(b"two"))
    send = bench.route(**HOUR)
    await send()
    await bench.clock.advance(7199)
    assert (await send()).body == b"one"


async def test_nothing_is_kept_past_max_age_total() -> None:
    """`max_age_total` bounds what the origin states, stale use included."""
    bench = Bench(
        ok(b"one", cache_control="max-age=999, stale-while-revalidate=999, stale-if-error=999", etag='"1"'),
        ok(b"two", status=503),
    )
    send = bench.route(cache={"max_age_total": "10m"})
    await send()
    await bench.clock.advance(599)
    assert (await send()).body == b"one"
    await bench.clock.advance(1)
    assert (await send()).status == 503
    assert bench.seen[1].request.header(b"if-none-match") is None


async def test_validation_makes_nothing_younger() -> None:
    """`max_age_total` counts from when the content came, whatever 304s say since."""
    bench = Bench(ok(b"one", etag='"1"'), ok(b"", 304, etag='"1"'), ok(b"two"))
    send = bench.route(cache={"ttl": "5m", "max_age_total": "10m"})
    await send()
    await bench.clock.advance(400)
    assert (await send()).body == b"one"
    await bench.clock.advance(200)
    assert (await send()).body == b"two"
    assert bench.outcomes == ["miss", "revalidated", "miss"]


@pytest.mark.parametrize(("asked", "said"), [
    ({}, {"cache_control": "no-store"}),
    ({}, {"cache_control": "private"}),
    ({}, {"cache_control": "private, max-age=60"}),
    ({}, {"set_cookie": "id=1"}),
    ({}, {"vary": "*"}),
    ({"authorization": "Bearer a"}, {}),
    ({"authorization": "Bearer a"}, {"cache_control": "max-age=60"}),
    ({"cache_control": "no-store"}, {}),
])  # fmt: skip
async def test_what_is_for_one_client_is_not_kept(asked: dict[str, Any], said: dict[str, Any]) -> None:
    """Under a policy's `ttl` too, nobody gets an answer that was for another."""
    bench = Bench(ok(b"one", **said), ok(b"two"))
    send = bench.route(**HOUR)
    assert (await send(**asked)).body == b"one"
    assert (await send()).body == b"two"


@pytest.mark.parametrize(("setting", "asked", "said"), [
    ("share_private", {}, {"cache_control": "private"}),
    ("share_private", {}, {"set_cookie": "id=1"}),
    ("share_authorized", {"authorization": "Bearer a"}, {}),
])  # fmt: skip
async def test_a_policy_may_share_in_so_many_words(
    setting: str, asked: dict[str, Any], said: dict[str, Any]
) -> None:
    """Each of these is shared by a setting of its own name, and by no other."""
    bench = Bench(ok(b"one", **said), ok(b"two"))
    send = bench.route(cache={"ttl": "1h", setting: True})
    await send(**asked)
    assert (await send()).body == b"one"


async def test_a_credential_in_the_key_keeps_its_holders_apart() -> None:
    """`key.headers: [authorization]` stores one answer for each credential."""
    bench = Bench(ok(b"a"), ok(b"b"))
    send = bench.route(cache={"ttl": "1h", "key": {"headers": ["authorization"]}})
    for _ in range(2):
        assert (await send(authorization="Bearer a")).body == b"a"
        assert (await send(authorization="Bearer b")).body == b"b"
    assert len(bench.calls) == 2


async def test_negative_answers_have_a_ttl_of_their_own() -> None:
    """The verdict `negative` is kept for `negative_ttl`, not for `ttl`."""
    bench = Bench(stated(b"none", Verdict.NEGATIVE), stated(b"found", Verdict.OK))
    send = bench.cache_alone(ttl="1h", negative_ttl="1m")
    await send()
    await bench.clock.advance(59)
    assert (await send()).body == b"none"
    await bench.clock.advance(1)
    assert (await send()).body == b"found"
    await bench.clock.advance(3599)
    assert (await send()).body == b"found"


@pytest.mark.parametrize("verdict", [
    Verdict.NEGATIVE, Verdict.TRANSIENT, Verdict.RATE_LIMITED, Verdict.QUOTA, Verdict.AUTH, Verdict.CLIENT,
])  # fmt: skip
async def test_a_verdict_stops_storage_under_a_ttl(verdict: Verdict) -> None:
    """A 200 with any verdict but `ok` is not kept for `ttl`."""
    bench = Bench(stated(b"one", verdict), stated(b"two", Verdict.OK))
    send = bench.cache_alone(ttl="1h")
    assert (await send()).body == b"one"
    assert (await send()).body == b"two"


async def test_the_origins_word_stands_whatever_the_verdict() -> None:
    """An error that the origin calls fresh is kept for as long (RFC 9111, 3)."""
    bench = Bench(ok(b"down", 503, cache_control="max-age=10"), ok(b"up"))
    send = bench.route(**HOUR)
    await send()
    assert ((await send()).status, len(bench.calls)) == (503, 1)


async def test_errors_are_not_stored_under_a_ttl() -> None:
    """A 404 or a 500 without a word of the origin is asked for anew."""
    bench = Bench(ok(b"", 404), ok(b"", 500), ok(b"there"))
    send = bench.route(**HOUR)
    assert [(await send()).status for _ in range(3)] == [404, 500, 200]


# -- POST -----------------------------------------------------------------------------------------

JSON_KEY: dict[str, Any] = {"cache": {"ttl": "30m", "methods": ["POST"], "key": {"body": "json"}}}


async def test_equal_json_is_a_hit() -> None:
    """Order of members and white space do not matter; another value does."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(**JSON_KEY)
    kind = {"content_type": "application/json"}
    await send("POST", b'{"a": 1, "b": [true, null]}', **kind)
    same = await send("POST", b'{"b":[true,null],\n "a":1.0}', **kind)
    assert (same.body, shown(same, "cache-status")) == (b"one", "sidecar; hit; ttl=1800")
    assert (await send("POST", b'{"b": [null, true], "a": 1}', **kind)).body == b"two"


async def test_a_posted_answer_is_none_to_a_get() -> None:
    """GET and POST of one URL are different requests."""
    bench = Bench(ok(b"posted"), ok(b"got"))
    send = bench.route(cache={"ttl": "30m", "methods": ["GET", "POST"], "key": {"body": "json"}})
    await send("POST", b"{}")
    assert (await send()).body == b"got"
    assert (await send("POST", b"{ }")).body == b"posted"


@pytest.mark.parametrize("length", [13, None])
async def test_a_streamed_body_is_gathered(length: int | None) -> None:
    """A body that streams in is the key as a whole one is, and reaches the origin whole."""
    bench = Bench(ok(b"one"), ok(b"two"))
    send = bench.route(**JSON_KEY)
    await send("POST", b'{"b":2,"a":1}')
    body = Stream(None, length)
    sent = send("POST", body)
    body.feed(b'{"a":1')
    await bench.clock.advance(0.1)
    body.feed(b',"b":2}')
    body.finish()
    assert (await sent).body == b"one"
    other = Stream(None, length)
    sent = send("POST", other)
    other.feed(b'{"a":1')
    other.feed(b',"b":3}')
    other.finish()
    assert (await sent).body == b"two"
    assert bench.seen[1].request.body == b'{"a":1,"b":3}'


@pytest.mark.parametrize("length", [20, None])
async def test_a_body_too_large_for_a_key_passes(length: int | None) -> None:
    """A request body over `max_object` goes through whole, past the cache."""
    bench = Bench(ok(b"one"))
    send = bench.route(cache={"ttl": "30m", "methods": ["POST"], "max_object": "10B"})

    async def reads(exchange: object) -> object:
        request = bench.seen[-1].request
        parts = []
        assert not isinstance(request.body, bytes)
        while part := await request.body.read():
            parts.append(part)
        return await ok(b"".join(parts))(bench.seen[-1])

    bench.script = [reads]
    for _ in range(2):
        body = Stream(None, length)
        body.feed(b"0123456789")
        body.feed(b"0123456789")
        body.finish()
        response = await send("POST", body)
        assert response.body == b"01234567890123456789"
        assert shown(response, "cache-status") == "sidecar; fwd=bypass; fwd-status=200"
    assert len(bench.calls) == 2


async def test_query_is_not_get() -> None:
    """A QUERY without content does not get what a GET stored."""
    bench = Bench(ok(b"got"), ok(b"queried"))
    send = bench.route(cache={"ttl": "1h", "methods": ["GET", "QUERY"]})
    await send()
    assert (await send("QUERY")).body == b"queried"


# -- Vary -----------------------------------------------------------------------------------------


async def test_each_variant_is_stored() -> None:
    """Answers that vary are told apart by the fields that `Vary` names."""
    bench = Bench(ok(b"fr", vary="Accept-Language"), ok(b"en", vary="Accept-Language"))
    send = bench.route(**HOUR)
    await send(accept_language="fr")
    assert (await send(accept_language="en")).body == b"en"
    for language, body in (("fr", b"fr"), ("en", b"en"), ("EN;q=1", b"en")):
        response = await send(accept_language=language)
        assert (response.body, shown(response, "cache-status")) == (body, "sidecar; hit; ttl=3600")
    assert len(bench.calls) == 2


async def test_another_variant_is_a_vary_miss() -> None:
    """`Cache-Status` tells that the URL is known and only the variant is not (RFC 9211, 2.2)."""
    bench = Bench(ok(b"fr", vary="Accept-Language"))
    send = bench.route(**HOUR)
    await send(accept_language="fr")
    response = await send(accept_language="en")
    assert shown(response, "cache-status") == "sidecar; fwd=vary-miss; fwd-status=200; stored"


async def test_variants_are_capped() -> None:
    """The oldest of 65 variants makes room."""
    bench = Bench(ok(b"x", vary="X-Kind"))
    send = bench.route(**HOUR)
    for number in range(65):
        await send(x_kind=str(number))
    assert len(bench.calls) == 65
    for number in range(64, 0, -1):
        await send(x_kind=str(number))
    assert len(bench.calls) == 65
    await send(x_kind="0")
    assert len(bench.calls) == 66


async def test_no_vary_after_variants() -> None:
    """A later answer without `Vary` is for everybody."""
    bench = Bench(ok(b"fr", vary="Accept-Language"), ok(b"all"))
    send = bench.route(**HOUR)
    await send(accept_language="fr")
    await send(accept_language="en")
    assert (await send(accept_language="de")).body == b"all"
    assert (await send()).body == b"all"
    assert len(bench.calls) == 2


async def test_a_broken_body_is_not_stored() -> None:
    """What the upstream cut short is an error to its client, and a miss to the next."""
    body = Stream(None, 6)
    bench = Bench(stated(body, Verdict.OK, cache_control="max-age=60"), ok(b"whole"))
    send = bench.route(**HOUR)
    response = await send()
    body.feed(b"par")
    body.fail(BodyBroken())
    with pytest.raises(BodyBroken):
        await content(response)
    assert (await send()).body == b"whole"

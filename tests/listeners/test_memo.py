"""Heads that are known, and those that must not be: beside a sidecar that knows none, on the same bytes."""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecar.clock import Ids
from sidecar.config.schema import Route
from sidecar.listeners import memo as memo_module
from sidecar.listeners.memo import Memo
from sidecar.pipeline import Place, compile_pipeline
from sidecar.stores.entry import Entry
from sidecar.telemetry.trace import Tracer
from tests.listeners import test_parser, test_refused_requests
from tests.listeners.test_memo_twins import POLICY, VALUES, Origin
from tests.support.clock import ScriptedRandom
from tests.support.script import Bench, ok
from tests.support.twins import Twins

KNOWN = b"GET /plain/a HTTP/1.1\r\nHost: app\r\nAccept: */*\r\n\r\n"
LEARNT = 4
"""Requests after which a head is known: a miss, a hit, one more, and the first that is answered by it."""


def request(target: str = "/plain/a", *lines: str, start: str = "GET {} HTTP/1.1") -> bytes:
    return "\r\n".join([start.format(target), "Host: app", "Accept: */*", *lines, "", ""]).encode("latin-1")


@pytest.fixture
async def twins() -> AsyncIterator[Twins]:
    pair = Twins(POLICY, Origin)
    yield pair
    await pair.close()


async def ask(twins: Twins, *reads: bytes, by: int = 1, times: int = 1) -> bytes:
    """The answers, which must be the same from both."""
    answers = b""
    for _ in range(times):
        await twins.send(by, *reads)
        wire = twins.knowing.wires[by]
        answers += bytes(wire.written)
        assert not (found := twins.difference()), found
    return answers


async def learnt(twins: Twins, head: bytes = KNOWN) -> None:
    await ask(twins, head, times=LEARNT)
    assert twins.knowing.by_memo == 1


async def test_a_known_head_passes_no_pipeline(twins: Twins) -> None:
    """It is answered by what is stored, with an id of its own, and with the age that this has by then."""
    await learnt(twins)
    await twins.wait(2.5)
    answer = await ask(twins, KNOWN)
    assert twins.knowing.by_memo == 2
    assert b"\r\nAge: 2\r\nCache-Status: sidecar; hit; ttl=7\r\n" in answer
    assert answer.endswith(b"\r\n\r\n/plain/a, time 1")
    ids = {
        line for line in (answer + await ask(twins, KNOWN)).split(b"\r\n") if line.startswith(b"X-Request-ID")
    }
    assert len(ids) == 2


async def test_ids_and_cookies_may_differ(twins: Twins) -> None:
    """Each request keeps the id that it came with; what nothing looks at makes no other request."""
    for number in range(8):
        trace = f"traceparent: 00-{number + 1:032x}-{7:016x}-0{number % 2}"
        head = request("/plain/a", f"Cookie: c={number}", f"X-Request-ID: mine-{number}", trace, "b3: 1")
        assert b"\r\nX-Request-ID: mine-%d\r\n" % number in await ask(twins, head, by=1 + number % 3)
    assert twins.knowing.by_memo == 8 - LEARNT + 1


async def test_an_id_that_was_empty_at_first(twins: Twins) -> None:
    """A correlation id is logged though the head was learnt from a request whose own was empty."""
    await learnt(twins, request("/plain/a", "X-Correlation-ID:"))
    await ask(twins, request("/plain/a", "X-Correlation-ID: of-the-app"))
    await ask(twins, request("/plain/a", "X-Correlation-ID: "))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ["Cookie", "X-Request-ID", "traceparent", "X-Forwarded-For"])
async def test_values_are_held_against_the_grammar(twins: Twins, name: str, value: bytes) -> None:
    """RFC 9110, 5.5: what a value must not hold is refused in a head that is known but for it."""
    await learnt(twins, request("/plain/a", f"{name}: good", "Accept-Language: en"))
    head = request("/plain/a", f"{name}: <here>", "Accept-Language: en").replace(b"<here>", value)
    await ask(twins, head)
    await ask(twins, head, by=3)


@pytest.mark.parametrize(
    ("target", "one", "other"),
    [
        ("/crumb/a", "Cookie: a=1", "Cookie: b=1"),
        ("/tenant/a", "X-Tenant: a1", "X-Tenant: b1"),
        ("/plain/cookies", "Cookie: a=1", "Cookie: a=2"),
        ("/plain/cookies", "X-Forwarded-Proto: http", "X-Forwarded-Proto: https"),
        ("/plain/vary", "Accept-Encoding: gzip", "Accept-Encoding: br"),
        ("/keyed/a", "Cookie: a=1", "Cookie: a=2"),
    ],
)
async def test_what_a_route_looks_at_counts(twins: Twins, target: str, one: str, other: str) -> None:
    """A header of `match`, of the key or of `Vary` makes another request, whatever its name is."""
    for line in (one, other, one, other):
        await ask(twins, request(target, line, "X-Request-ID: me"), times=LEARNT)
    assert twins.knowing.by_memo > 0 or target == "/keyed/a"


async def test_logged_headers_count() -> None:
    """A header that `logging.fields` names is logged as each request has it."""
    twins = Twins(POLICY, Origin, fields=[("jar", "Cookie"), ("trace", "traceparent")])
    for number in range(3):
        await ask(twins, request("/plain/a", f"Cookie: {number}", "traceparent: x"), times=LEARNT)
    assert twins.knowing.by_memo > 0
    await twins.close()


NEVER = {
    "HEAD": request(start="HEAD {} HTTP/1.1"),
    "another method": request(start="POST {} HTTP/1.1"),
    "HTTP/1.0": request(start="GET {} HTTP/1.0"),
    "a URL as its target": request("http://app/plain/a"),
    "Connection: close": request("/plain/a", "Connection: close"),
    "a body": request("/plain/a", "Content-Length: 2") + b"hi",
    "a chunked body": request("/plain/a", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "Expect": request("/plain/a", "Expect: 100-continue", "Content-Length: 0"),
    "Upgrade": request("/plain/a", "Connection: Upgrade", "Upgrade: x"),
    "Range": request("/plain/a", "Range: bytes=0-3"),
    "If-None-Match": request("/plain/etag", 'If-None-Match: "one"'),
    "If-Modified-Since": request("/plain/a", "If-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT"),
    "Cache-Control": request("/plain/a", "Cache-Control: max-age=5"),
    "Authorization": request("/plain/a", "Authorization: me"),
    "the decision trail": request("/plain/a", "X-Sidecar-Debug: 1"),
    "a stored 204": request("/plain/empty"),
    "a large body": request("/plain/large"),
    "a rate limit": request("/limited/a"),
    "a rate limit in shadow": request("/shadow/a"),
    "a key of the time": request("/dropped/a?t=1"),
    "a key of a header": request("/keyed/a"),
    "two at once": KNOWN + KNOWN,
}


@pytest.mark.parametrize("kind", NEVER)
async def test_never_known(twins: Twins, kind: str) -> None:
    """What is more than a plain GET, or has more to be done about it than the cache does, is not known."""
    for by in (1, 2):  # 2 may ask for the trail
        await ask(twins, NEVER[kind], by=by, times=LEARNT + 1)
    assert twins.knowing.by_memo == 0


async def test_traced_requests_are_not_known() -> None:
    """Where spans are exported each request must be seen: its trace begins in `observe`."""
    bench = Bench(ok(b"one"))
    memo = Memo(bench.clock, looked_at=frozenset(), routing=lambda *_: frozenset())
    route = Route.model_validate({"name": "all", "cache": {"ttl": "10s"}})
    for tracer, remembers in ((None, True), (Tracer(bench.clock, Ids(), ScriptedRandom(0.5), 0.1), False)):
        services = dataclasses.replace(bench.services, tracer=tracer)
        send = bench._sender(compile_pipeline(Place(route, "app", services, memo=memo), bench._upstream))
        await send()
        assert hasattr(await send(), "source") is remembers


async def test_pieces_are_for_the_parser(twins: Twins) -> None:
    """While bytes of another request are there, whole heads are not taken out of their order."""
    await learnt(twins)
    for reads in ([KNOWN[:5], KNOWN], [b"\r\n", KNOWN], [KNOWN + b"G", KNOWN[1:]], [KNOWN, b"G", KNOWN]):
        await ask(twins, *reads, by=2)
        await twins.leave(2)
    assert twins.knowing.by_memo == 2


async def test_a_client_that_does_not_read_waits(twins: Twins) -> None:
    """No answer is added to what a client has not taken."""
    await learnt(twins)
    for twin in twins.both:
        twin.wire(1).protocol.pause_writing()
    await ask(twins, KNOWN)
    await ask(twins, KNOWN)
    assert twins.knowing.by_memo == 1
    for twin in twins.both:
        twin.wire(1).protocol.resume_writing()
    await twins.settle()
    assert not twins.difference()
    await ask(twins, KNOWN)
    assert twins.knowing.by_memo == 2


async def test_draining_ends_connections(twins: Twins) -> None:
    """The last answers say `Connection: close`, as the pipeline's do."""
    await learnt(twins)
    for twin in twins.both:
        twin.listener.draining = True
    assert b"\r\nConnection: close\r\n" in await ask(twins, KNOWN)
    assert twins.knowing.by_memo == 1


@pytest.mark.parametrize("what", [{"url": "/plain/a"}, {"namespace": "plain"}, {"tag": "some"}])
async def test_purged(twins: Twins, what: dict[str, str]) -> None:
    """What was purged is not given to anybody, and no memory keeps it."""
    target = "/plain/tagged" if "tag" in what else "/plain/a"
    await learnt(twins, request(target))
    body = f"{target}, time 1".encode()
    assert [it for it in gc.get_objects() if isinstance(it, Entry) and it.body == body]
    await twins.purge(**what)
    gc.collect()
    assert not [it for it in gc.get_objects() if isinstance(it, Entry) and it.body == body]
    assert (await ask(twins, request(target))).endswith(b", time 2")


async def test_replaced_while_fresh(twins: Twins) -> None:
    """A client that has the origin asked gets a new answer stored: the known head gets that."""
    await learnt(twins)
    await ask(twins, request("/plain/a", "Cache-Control: no-cache"))
    assert b"\r\nX-Time: 2\r\n" in await ask(twins, KNOWN)
    assert (await ask(twins, KNOWN)).endswith(b", time 2")
    assert twins.knowing.by_memo == 3


@pytest.mark.parametrize("route", ["plain", "stale", "ahead"])
async def test_freshness_ends(twins: Twins, route: str) -> None:
    """Past its time, or where it is to be refreshed ahead of that, an answer is the layer's affair."""
    await learnt(twins, request(f"/{route}/a"))
    for seconds in (1.0, 1.5, 2.0, 1.0, 0.75, 4.0, 3.0, 20.0, 1.0):
        await twins.wait(seconds)
        await ask(twins, request(f"/{route}/a"), times=2)


async def test_another_generation_knows_nothing(twins: Twins) -> None:
    """A reload, or a feature that is switched, begins with an empty memory."""
    await learnt(twins)
    twins.reload()
    await ask(twins, KNOWN, times=2)
    assert twins.knowing.by_memo == 1
    await ask(twins, KNOWN)
    assert twins.knowing.by_memo == 2


async def test_bounded(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever clients send, so many heads are known and no more; the oldest make room."""
    monkeypatch.setattr(memo_module, "MOST", 4)
    for number in range(12):
        await ask(twins, request(f"/plain/{number}"), times=LEARNT)
        await ask(twins, request(f"/plain/{number}", f"Cookie: {number}", f"X-{number}: 1"), times=2)
    for number in range(12):
        await ask(twins, request("/plain/a", "Cookie: one", f"X-{number}: 1"), times=2)
    memo = twins.knowing._generation.memo
    assert memo is not None
    assert len(memo) <= 4 + 4 * memo_module.MOST_FORMS
    before = twins.knowing.by_memo
    await ask(twins, request("/plain/11"))
    assert twins.knowing.by_memo == before + 1


CORPUS = {
    **test_refused_requests.FRAMING,
    **test_refused_requests.HEADS,
    **{name: case[0] for name, case in test_refused_requests.OTHER.items()},
    **{f"seed {number}": seed for number, seed in enumerate(test_parser.SEEDS)},
}


async def test_framing(twins: Twins) -> None:
    """What is malformed or ambiguous is refused the same, twice on a connection and beside known heads."""
    await learnt(twins)
    for name, message in CORPUS.items():
        for reads in ([message, message], [KNOWN, message], [message + KNOWN], [KNOWN + message, KNOWN]):
            await twins.send(1, *reads)
            assert not (found := twins.difference(counts=False)), f"{name}: {found}"
            await twins.leave(1)
            twins.difference(counts=False)
    assert not (found := twins.difference()), found


async def test_spliced(twins: Twins) -> None:
    """A known head with anything cut out of it, or put into it, is what the parser says that it is."""
    chance = random.Random(5)
    heads = [
        KNOWN,
        request("/plain/a", "Cookie: a=1", "traceparent: x", "X-Request-ID: me", "Accept-Language: e"),
    ]
    for head in heads:
        await ask(twins, head, times=LEARNT)
    for number in range(1000):
        message = chance.choice(heads)
        for _ in range(chance.choice((0, 1, 1, 2))):
            start = chance.randrange(len(message) + 1)
            end = min(len(message), start + chance.choice((0, 0, 1, 1, 2, 8)))
            message = message[:start] + chance.choice(test_parser.SPLICES) + message[end:]
        await twins.send(1, message)
        await twins.leave(1)
        assert not (found := twins.difference(counts=number % 100 == 0)), f"{message!r}: {found}"
    assert twins.knowing.by_memo > 200


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 3), st.sampled_from(["plain", "stale", "ahead", "crumb"]),
              st.sampled_from(["a", "vary", "fresh"]), st.lists(st.sampled_from(
                  ["Cookie: a=1", "Cookie: b=1", "X-Request-ID: me", "Accept-Encoding: gzip",
                   "X-Forwarded-For: 10.0.0.1", "Cache-Control: no-cache"]), max_size=2, unique=True)),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 3.0, 8.0])),
    st.tuples(st.just("purge"), st.sampled_from(["plain", "ahead"])),
    st.tuples(st.just("reload")),
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=5, max_size=30))
async def test_any_script(steps: list[tuple[Any, ...]]) -> None:
    """Whatever is asked, and whatever becomes of the store: the same answers, counts and lines."""
    twins = Twins(POLICY, Origin)
    for kind, *what in steps:
        if kind == "ask":
            by, route, name, lines = what
            await ask(twins, request(f"/{route}/{name}", *lines), by=by, times=2)
        elif kind == "wait":
            await twins.wait(what[0])
        elif kind == "purge":
            await twins.purge(namespace=what[0])
        else:
            twins.reload()
        assert not (found := twins.difference()), found
    await twins.close()

"""Injected faults: what the layers above and the client get of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.config.schema import Fault
from sidecar.decisions.verdict import Verdict
from sidecar.errors import BodyBroken, ConnectionReset
from sidecar.exchange import End, Response, Stream
from tests.support.clock import ScriptedRandom, settle
from tests.support.script import Bench, answer, content, fail, hang, stream

QUICK: dict[str, Any] = {"strategy": "fixed", "base": "100ms", "max": "100ms"}


def code(response: Response) -> str:
    value = response.header(b"sidecar-error")
    return value.decode() if value is not None else ""


async def read(bench: Bench, response: Response) -> tuple[bytes, BaseException | None]:
    """What comes of a body, in virtual time, and what breaks it."""
    got = b""
    assert isinstance(response.body, Stream)
    try:
        while part := await bench.clock.complete(response.body.read()):
            got += part
    except BodyBroken as error:
        return got, error
    return got, None


async def test_latency() -> None:
    """The attempt begins later; its time counts as the upstream's."""
    bench = Bench(answer())
    response = await bench.clock.complete(bench.route(fault={"delay": "2s"})())
    assert response.status == 200
    assert bench.calls == [1002.0]
    assert bench.sent[0].upstream_seconds == 2.0
    assert bench.sent[0].note_list == [("fault", "delay=2.000")]
    assert bench.sent[0].attempts == 1


async def test_latency_of_a_range() -> None:
    """A time between the two, by chance."""
    bench = Bench(answer())
    await bench.clock.complete(bench.route(fault={"delay": {"min": "1s", "max": "3s"}})())
    assert bench.calls == [1002.0]


async def test_latency_meets_the_timer() -> None:
    """An attempt that is held up for too long times out as a slow one does."""
    bench = Bench(answer())
    send = bench.route(fault={"delay": "5s"}, attempt_timeout="1s", circuit_breaker={"consecutive": 1})
    response = await bench.clock.complete(send())
    assert (response.status, code(response)) == (504, "attempt_timeout")
    assert bench.calls == []
    assert bench.sent[0].attempts == 1
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "open"


async def test_reset() -> None:
    """The connection ends before a head: 502, and the upstream was not asked."""
    bench = Bench(answer())
    response = await bench.route(fault={"reset": True})()
    assert (response.status, code(response)) == (502, "upstream_reset")
    assert bench.calls == []
    assert (bench.sent[0].attempts, bench.sent[0].upstream) == (1, "app")


async def test_it_counts_in_the_breaker_and_is_retried() -> None:
    """An injected failure is one of the upstream's to the breaker, the retry, the metrics and the verdict."""
    bench = Bench(answer())
    send = bench.route(
        fault={"reset": True, "first": 2},
        retry={"attempts": 3, "backoff": QUICK},
        circuit_breaker={"consecutive": 3},
    )
    assert (await bench.clock.complete(send())).status == 200
    assert bench.clock.slept == [0.1, 0.1]
    assert bench.sent[0].attempts == 3
    cells = bench.metrics.upstream("app").attempts()
    assert {verdict.value: count for verdict, count in cells.items() if count} == {"ok": 1, "transient": 2}
    assert bench.metrics.breakers["app"].breaker._failures.total(bench.clock.now()) == 2
    opening = bench.route("other", fault={"reset": True}, circuit_breaker={"consecutive": 1})
    assert [code(await opening()), code(await opening())] == ["upstream_reset", "circuit_open"]


async def test_a_post_whose_connection_was_reset_is_not_retried() -> None:
    """As with a real one: something may have been sent."""
    bench = Bench(answer())
    send = bench.route(fault={"reset": True, "first": 1}, retry={"attempts": 3})
    assert (await send("POST")).status == 502
    assert bench.sent[0].attempts == 1


@pytest.mark.parametrize("body", [b"0123456789", Stream(None, 10), Stream(None)])
async def test_truncated(body: bytes | Stream) -> None:
    """So many bytes come, then the connection ends; the upstream's own body is given up."""
    if isinstance(body, Stream):
        for part in (b"012", b"345", b"6789"):
            body.feed(part)
    bench = Bench(answer(200, body) if isinstance(body, bytes) else stream(body))
    response = await bench.route(fault={"truncate": "4B"}, circuit_breaker={"consecutive": 1})()
    assert response.status == 200
    assert isinstance(response.body, Stream)
    assert response.body.length == (10 if isinstance(body, bytes) else body.length)
    got, error = await read(bench, response)
    assert got == b"0123"
    assert isinstance(error, BodyBroken)
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "open"
    if isinstance(body, Stream):
        assert body.end is End.DROPPED


async def test_a_body_within_the_cut_is_whole() -> None:
    """Nothing is lost of what is not longer, to the byte."""
    bench = Bench(answer(200, b"0123"), answer(204, b""))
    send = bench.route(fault={"truncate": "4B"})
    assert await content(await send()) == b"0123"
    assert await content(await send()) == b""


async def test_a_chunked_body_that_is_as_long_as_the_cut() -> None:
    """Whether there is more is known only when it comes: here there is none."""
    body = Stream(None)
    body.feed(b"0123")
    body.finish()
    bench = Bench(stream(body))
    response = await bench.route(fault={"truncate": "4B"})()
    assert await read(bench, response) == (b"0123", None)


async def test_slow_drip() -> None:
    """So many bytes a second, a tenth of that at a time; the last ones come when they are due."""
    bench = Bench(answer(200, b"x" * 250))
    response = await bench.route(fault={"bandwidth": "100B/s"})()
    seen = []
    assert isinstance(response.body, Stream)
    while part := await bench.clock.complete(response.body.read()):
        seen.append((round(bench.clock.now() - 1000, 3), len(part)))
    assert seen[:2] == [(0.1, 10), (0.2, 10)]
    assert seen[-1] == (2.5, 10)


async def test_slow_drip_holds_the_permit() -> None:
    """The limiter's slot is held while the body drips."""
    bench = Bench(answer(200, b"x" * 100), answer())
    send = bench.route(fault={"bandwidth": "100B/s", "first": 1}, concurrency_limit={"max": 1})
    response = await send()
    assert (await send()).status == 503
    assert len((await read(bench, response))[0]) == 100
    await settle()
    assert (await send()).status == 200


async def test_a_dripping_body_that_breaks() -> None:
    """What broke the real body reaches its reader."""
    body = Stream(None)
    bench = Bench(stream(body))
    response = await bench.route(fault={"bandwidth": "1KiB/s"})()
    body.feed(b"abc")
    body.fail(BodyBroken("really"))
    got, error = await read(bench, response)
    assert (got, str(error)) == (b"abc", "really")


async def test_a_client_that_leaves_a_dripping_body() -> None:
    """The upstream's body is given up, and nothing is left running."""
    body = Stream(None)
    bench = Bench(stream(body))
    response = await bench.route(fault={"bandwidth": "10B/s"})()
    body.feed(b"x" * 100)
    await bench.clock.advance(1)
    response.close()
    await settle()
    assert body.end is End.DROPPED
    assert not bench.services.state.faults._tasks


async def test_a_slow_client_pauses_the_drip() -> None:
    """Back-pressure holds: what nobody reads is not fed."""
    body = Stream(None)
    bench = Bench(stream(body))
    response = await bench.route(fault={"bandwidth": "1MiB/s"})()
    body.feed(b"x" * (1 << 20))
    await bench.clock.advance(10)
    assert isinstance(response.body, Stream)
    assert response.body.buffered < 1 << 18
    body.finish()
    assert len((await read(bench, response))[0]) == 1 << 20


async def test_a_share() -> None:
    """By chance, as the service of chance says."""
    bench = Bench(answer())
    send = bench.route(fault={"reset": True, "percent": "50%"})
    random = bench.services.random
    assert isinstance(random, ScriptedRandom)
    random._numbers = [0.49, 0.5, 0.1, 0.9]
    random.drawn = 0
    assert [(await send()).status for _ in range(4)] == [502, 200, 502, 200]


async def test_every_third() -> None:
    """Counted over all attempts of the route, in their order."""
    bench = Bench(answer())
    send = bench.route(fault={"reset": True, "every": 3})
    assert [(await send()).status for _ in range(6)] == [200, 200, 502, 200, 200, 502]


async def test_what_has_expired_does_nothing() -> None:
    """After its time the fault is gone, and the route's slot is empty: it costs nothing."""
    bench = Bench(answer())
    send = bench.route(fault={"reset": True, "expires": "10s"})
    faults = bench.services.state.faults
    await bench.clock.advance(9.9)
    assert (await send()).status == 502
    await bench.clock.advance(0.1)
    assert (await send()).status == 200
    assert faults._slots["all", "app"].active is None
    assert faults.listed() == []


async def test_it_expires_at_a_time() -> None:
    """A time of the wall clock, too; one that is past never begins."""
    bench = Bench(answer())
    soon = bench.route(fault={"reset": True, "expires": "2023-11-14T22:13:25Z"})
    past = bench.route("past", fault={"reset": True, "expires": "2023-11-14T22:13:19+00:00"})
    assert [(await soon()).status, (await past()).status] == [502, 200]
    await bench.clock.advance(5)
    assert (await soon()).status == 200


async def test_what_has_ended_does_not_come_back() -> None:
    """A pipeline that is compiled anew (a reload) with the same fault counts on from its first start."""
    bench = Bench(answer())
    declared = {"reset": True, "expires": "10s"}
    bench.route(fault=declared)
    await bench.clock.advance(11)
    bench.services.state.faults.sweep(bench.clock.now())
    send = bench.route(fault=declared)
    assert (await send()).status == 200
    send = bench.route(fault={**declared, "expires": "20s"})
    assert (await send()).status == 502
    send = bench.route()
    assert (await send()).status == 200


async def test_set_while_it_runs() -> None:
    """A fault set on a route or on its upstream hits the next attempt, and clearing it ends it."""
    bench = Bench(answer())
    one, two = bench.route("one"), bench.route("two")
    faults = bench.services.state.faults
    reset = Fault.model_validate({"reset": True, "expires": "1m"})
    faults.set("route", "one", reset)
    assert [(await one()).status, (await two()).status] == [502, 200]
    faults.set("upstream", "app", reset)
    assert [(await one()).status, (await two()).status] == [502, 502]
    assert faults.clear("route", "one") == 1
    assert [(await one()).status, (await two()).status] == [502, 502]
    assert faults.clear() == 1
    assert [(await one()).status, (await two()).status] == [200, 200]


async def test_the_routes_own_goes_first() -> None:
    """One fault hits an attempt: the route's, or where it spares it, the upstream's."""
    bench = Bench(answer())
    send = bench.route()
    faults = bench.services.state.faults
    faults.set("upstream", "app", Fault.model_validate({"delay": "1s", "expires": "1m"}))
    faults.set("route", "all", Fault.model_validate({"reset": True, "every": 2, "expires": "1m"}))
    first, second = await bench.clock.complete(send()), await bench.clock.complete(send())
    assert [first.status, second.status] == [200, 502]
    assert bench.clock.slept == [1.0]


@pytest.mark.parametrize(
    ("kind", "name", "fault", "why"),
    [
        ("route", "nowhere", {"expires": "1m"}, 'there is no route "nowhere" (there are all)'),
        ("upstream", "nowhere", {"expires": "1m"}, 'there is no upstream "nowhere" (there are app)'),
        ("route", "all", {}, "when does it end?"),
        ("route", "all", {"expires": "61m"}, "60 minutes at most"),
        ("route", "all", {"expires": "2030-01-01T00:00:00Z"}, "60 minutes at most"),
        ("route", "all", {"expires": "2020-01-01T00:00:00Z"}, "over already"),
    ],
)
async def test_what_cannot_be_set(kind: Any, name: str, fault: dict[str, str], why: str) -> None:
    """A place that is not there, and a fault that has no end, a far one, or a past one."""
    bench = Bench(answer())
    send = bench.route()
    faults = bench.services.state.faults
    with pytest.raises(ValueError, match=r".") as caught:
        faults.set(kind, name, Fault.model_validate({"reset": True, **fault}))
    assert why in str(caught.value)
    assert (await send()).status == 200


async def test_what_is_listed() -> None:
    """Where, by whom, what, how long still, and how often it was asked about and hit."""
    bench = Bench(answer())
    send = bench.route(fault={"reset": True, "every": 2})
    bench.services.state.faults.set(
        "upstream", "app", Fault.model_validate({"delay": "1s", "percent": "50%", "expires": "1m"})
    )
    for _ in range(3):
        await bench.clock.complete(send())
    listed = bench.services.state.faults.listed()
    assert listed[0] == {
        "route": "all",
        "source": "policy",
        "fault": {"reset": True, "every": 2},
        "expires_in_seconds": None,
        "attempts": 3,
        "injected": 1,
    }
    assert listed[1]["upstream"] == "app"
    assert listed[1]["fault"] == {"percent": "50%", "delay": {"min": "1s", "max": "1s"}, "expires": "1m"}
    assert bench.services.state.faults.scopes() == ["route all", "upstream app"]


async def test_counted() -> None:
    """What was injected shows in the metrics of the route."""
    bench = Bench(answer())
    send = bench.route(fault={"delay": "1s", "reset": True, "first": 2})
    for _ in range(3):
        await bench.clock.complete(send())
    assert bench.metrics.route("all", "app").faults_injected == {"delay": 2, "reset": 2}


@pytest.mark.parametrize("outcome", [answer(), fail(ConnectionReset())])
async def test_without_a_fault_the_layer_is_no_frame(outcome: Callable[..., Any]) -> None:
    """The handler below gives the very coroutine that the layer above awaits."""
    from sidecar.layers import fault

    bench = Bench(outcome)
    layer = fault.layer(bench._place("all", {}))
    assert layer is not None
    waiting = object()
    assert layer(lambda _: waiting)(bench) is waiting  # type: ignore[arg-type,return-value]


async def test_cancelled_while_it_is_held_up() -> None:
    """A client that leaves during injected latency ends the attempt before it reaches the upstream."""
    bench = Bench(hang())
    sent = bench.route(fault={"delay": "10s"})()
    await bench.clock.advance(5)
    sent.cancel()
    await asyncio.gather(sent, return_exceptions=True)
    await bench.clock.advance(10)
    assert bench.calls == []


async def test_an_answer() -> None:
    """The upstream is not asked; what it would have said is injected, with variables of the path."""
    bench = Bench(answer())
    respond = {"status": 503, "headers": {"Retry-After": "7"}, "json": {"q": "{query.q}"}}
    response = await bench.route(fault={"respond": respond})(target=b"/?q=a")
    assert (response.status, response.body) == (503, b'{"q":"a"}')
    assert (response.header(b"retry-after"), response.header(b"content-type")) == (b"7", b"application/json")
    assert bench.calls == []
    assert (bench.sent[0].attempts, bench.sent[0].upstream) == (1, "app")
    assert bench.sent[0].note_list is not None
    assert bench.sent[0].note_list[0] == ("fault", "respond=503")


async def test_a_good_status_with_an_error_in_its_body() -> None:
    """The verdict is by the route's own rules: a 200 that is none is retried as a real one would be."""
    bench = Bench(answer(200, b'{"status":"OK"}', (b"Content-Type", b"application/json")))
    send = bench.route(
        fault={"first": 2, "respond": {"json": {"status": "OVER_QUERY_LIMIT"}}},
        retry={"attempts": 3, "backoff": QUICK},
        classify=[{"json": {"status": "OVER_QUERY_LIMIT"}, "verdict": "rate_limited"}],
        circuit_breaker={"consecutive": 1},
    )
    response = await bench.clock.complete(send())
    assert (response.status, response.body) == (200, b'{"status":"OK"}')
    assert (bench.sent[0].attempts, len(bench.calls)) == (3, 1)
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "closed"


async def test_an_injected_body_drips_and_breaks_off_too() -> None:
    """What is injected is shaped as what the upstream sends is; rules see a slow body as it comes."""
    bench = Bench(answer())
    fault = {"respond": {"text": "0123456789"}, "bandwidth": "10B/s", "truncate": "4B"}
    response = await bench.clock.complete(
        bench.route(fault=fault, classify=[{"json": {"a": "b"}, "verdict": "quota"}])()
    )
    got, error = await read(bench, response)
    assert (got, type(error)) == (b"0123", BodyBroken)


async def test_a_dripping_body_that_a_rule_looks_at() -> None:
    """The verdict waits for the body, and the attempt's timer for the verdict."""
    slow = {"respond": {"json": {"status": "OVER_QUERY_LIMIT"}}, "bandwidth": "10B/s"}
    rules = [{"json": {"status": "OVER_QUERY_LIMIT"}, "verdict": "quota"}]
    bench = Bench(answer())
    await bench.clock.complete(bench.route(fault=slow, classify=rules)())
    assert bench.sent[0].verdict is Verdict.QUOTA
    response = await bench.clock.complete(
        bench.route("timed", fault=slow, classify=rules, attempt_timeout="1s")()
    )
    assert code(response) == "attempt_timeout"
    await settle()
    assert not bench.services.state.faults._tasks


async def test_a_fault_of_a_route_spares_the_upstreams_of_its_ladder() -> None:
    """So that a drill can see the ladder work; one of that upstream hits it."""
    other = "http://backup.example"
    bench = Bench(answer())
    bench.others = {other: [answer(200, b"backup")]}
    send = bench.route(fallback=[{"upstream": other}], fault={"reset": True})
    response = await send()
    assert (response.status, response.body) == (200, b"backup")
    name = next(upstream for _, upstream in bench.services.state.faults._slots if upstream != "app")
    bench.services.state.faults.set("upstream", name, Fault.model_validate({"reset": True, "expires": "1m"}))
    assert (await send()).status == 502


async def test_several_upstreams_of_one_route() -> None:
    """A file with several hosts has its routes once for each: one fault, activated once, hits all of them."""
    bench = Bench(answer())
    faults = bench.services.state.faults
    declared = Fault.model_validate({"reset": True, "expires": "10s"})
    one = faults.slot("geocode", "maps.example", declared)
    await bench.clock.advance(5)
    two = faults.slot("geocode", "maps.example.org", declared)
    assert one.active == two.active
    assert faults.listed()[0]["expires_in_seconds"] == 5.0
    faults.slot("geocode", "maps.example", None)
    faults.slot("geocode", "maps.example.org", None)
    assert (one.active, two.active) == (None, None)

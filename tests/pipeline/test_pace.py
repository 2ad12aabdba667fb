"""Pace among the other layers: who waits, who is refused, and what an answer teaches the next request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.decisions.verdict import Verdict
from sidecar.errors import ConnectFailed, ConnectionReset
from sidecar.exchange import Exchange, Response
from sidecar.pipeline import ORDER, Handler
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, Send, answer, fail, hang, ok, stated

SLOW = {"rate": "60/m", "learn": False, "patience": "1m"}
"""A turn each second, and nothing that changes it."""
QUICK = {"strategy": "fixed", "base": "100ms", "max": "100ms"}
START = 1000.0


def rules(policy: str) -> Any:
    """What a shipped policy makes of its provider's answers."""
    file = Path(__file__).parents[2] / "policies" / f"{policy}.yaml"
    return yaml.safe_load(file.read_text("utf-8"))["classify"]


def code(response: Response) -> str:
    value = response.header(b"sidecar-error")
    return value.decode() if value is not None else ""


def retry_after(response: Response) -> bytes | None:
    return response.header(b"retry-after")


def as_scripted(bench: Bench, name: str = "all", **settings: Any) -> Send:
    """A sender through a route's layers without `classify`: the script's verdicts stand."""
    place = bench._place(name, settings)
    handler: Handler = bench._upstream
    for step in reversed(ORDER):
        layer = step.layer(place) if step.name != "classify" else None
        if layer is not None:
            handler = layer(handler)
    return bench._sender(handler)


def out_of_credit(**headers: str) -> Outcome:
    """OpenAI's `insufficient_quota`, as a rule would have it."""
    return stated(b'{"error": {"code": "insufficient_quota"}}', Verdict.QUOTA, 429, **headers)


def well() -> Outcome:
    return stated(b"ok", Verdict.OK)


def seconds(bench: Bench) -> list[float]:
    """When attempts reached the upstream, from the start on."""
    return [round(at - START, 2) for at in bench.calls]


# -- turns -----------------------------------------------------------------------------------------


async def test_requests_go_at_the_rate() -> None:
    """Five requests at once, at a request a second: the last one goes after four."""
    bench = Bench(answer())
    send = bench.route(pace=SLOW)
    await bench.clock.complete(asyncio.gather(*(send() for _ in range(5))))
    assert seconds(bench) == [0, 1, 2, 3, 4]
    assert bench.sent[0].note_list is None
    assert bench.sent[4].note_list == [("pace", "waited=4.000")]


async def test_a_burst_is_for_interactive_requests() -> None:
    """After a rest `burst` of them go at once; batch requests keep to the rate."""
    for headers, expected in (({}, [0, 0, 0, 1]), ({"priority": "u=7"}, [0, 1, 2, 3])):
        bench = Bench(answer())
        send = bench.route(pace={**SLOW, "burst": 3})
        await bench.clock.complete(asyncio.gather(*(send(**headers) for _ in range(4))))
        assert seconds(bench) == expected


async def test_interactive_requests_go_first() -> None:
    """One that comes after ten batch requests has the next turn."""
    bench = Bench(answer())
    send = bench.route(pace=SLOW)
    batch = [send(priority="u=7") for _ in range(10)]
    await bench.clock.advance(0.5)
    sent = send()
    await bench.clock.advance(0.5)
    assert sent.done()
    assert sum(request.done() for request in batch) == 1


async def test_a_route_may_be_batch() -> None:
    """`priority: low` makes all that comes by a route batch, beside another route to the same quota."""
    bench = Bench(answer())
    nightly = bench.route("nightly", pace={**SLOW, "priority": "low"})
    page = bench.route("page", pace=SLOW)
    night = [nightly() for _ in range(3)]
    await settle()
    sent = page()
    await bench.clock.advance(1)
    assert sent.done()
    assert [request.done() for request in night] == [True, False, False]


async def test_the_class_is_that_of_the_limit() -> None:
    """Where pace names no class, the one of `concurrency_limit` is meant."""
    bench = Bench(answer())
    nightly = bench.route("nightly", pace=SLOW, concurrency_limit={"max": 9, "priority": "low"})
    page = bench.route("page", pace=SLOW)
    night = [nightly() for _ in range(3)]
    await settle()
    sent = page()
    await bench.clock.advance(1)
    assert sent.done()
    assert [request.done() for request in night] == [True, False, False]


async def test_batch_is_not_starved() -> None:
    """While interactive requests wait without end, each tenth turn is a batch request's."""
    bench = Bench(answer())
    send = bench.route(pace={**SLOW, "patience": "5m"})
    for _ in range(60):
        send()
    batch = [send(priority="u=7") for _ in range(3)]
    await bench.clock.advance(30)
    assert all(request.done() for request in batch)


async def test_a_client_that_leaves_costs_no_turn() -> None:
    """Of three who wait the second leaves: the third has its turn."""
    bench = Bench(answer())
    send = bench.route(pace=SLOW)
    waiting = [send() for _ in range(4)]
    await bench.clock.advance(0.5)
    waiting[2].cancel()
    await bench.clock.advance(1.5)
    assert waiting[3].done()
    assert seconds(bench) == [0, 1, 2]


async def test_a_turn_that_comes_as_the_client_leaves_goes_to_the_next() -> None:
    """Cancelled in the moment of its turn, a request passes it on."""
    bench = Bench(answer())
    send = bench.route(pace=SLOW)
    (turns,) = bench.services.state._turns.values()

    def meet() -> None:
        turns.serve()
        second.cancel()  # its turn is given, and its task does not know yet

    bench.clock.arm(START + 1, meet)
    send()
    second, third = send(), send()
    await bench.clock.advance(1)
    assert second.cancelled()
    assert third.done()
    assert seconds(bench) == [0, 1]


# -- refusals --------------------------------------------------------------------------------------


async def test_too_long_a_wait_is_refused_at_once() -> None:
    """With a patience of 2 s the fourth request is told so at once: 503, and when to come back."""
    bench = Bench(answer())
    send = bench.route(pace={**SLOW, "patience": "2s"})
    for _ in range(3):
        send()
    response = await send()
    assert bench.clock.now() == START
    assert (response.status, code(response), retry_after(response)) == (503, "pace_exceeded", b"3")
    assert bench.sent[-1].note_list == [("pace", "rejected=patience")]
    assert bench.metrics.route("all", "app").pace_rejections == {"patience": 1}


async def test_nobody_waits_past_the_deadline() -> None:
    """A turn that would come after the deadline is refused at once."""
    bench = Bench(answer())
    send = bench.route(pace=SLOW, deadline="1500ms")
    responses = await bench.clock.complete(asyncio.gather(send(), send(), send()))
    assert [response.status for response in responses] == [200, 200, 503]
    assert bench.metrics.route("all", "app").pace_rejections == {"deadline": 1}
    assert seconds(bench) == [0, 1]


async def test_patience_ends_a_wait_that_grew() -> None:
    """A batch request that others overtake waits no longer than its patience."""
    bench = Bench(answer())
    send = bench.route(pace={**SLOW, "batch_patience": "3s"})
    send()
    batch = send(priority="u=7")
    for _ in range(5):
        send()
    await bench.clock.advance(2.9)
    assert not batch.done()
    await bench.clock.advance(0.2)
    assert code(await batch) == "pace_exceeded"


async def test_a_refusal_is_neutral() -> None:
    """The breaker does not count it, the limit has its permit back, and retry leaves it alone."""
    bench = Bench(answer())
    send = bench.route(
        pace={**SLOW, "patience": "500ms"},
        circuit_breaker={"consecutive": 1},
        concurrency_limit={"max": 1},
        retry={"attempts": 3, "backoff": QUICK},
    )
    await send()
    assert code(await send()) == "pace_exceeded"
    assert bench.clock.slept == []
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "closed"
    assert bench.metrics.limits["app"].in_flight == 0


async def test_a_wait_is_no_slow_call() -> None:
    """A breaker that opens for slow calls does not count the time that a request waited for its turn."""
    bench = Bench(answer())
    breaker = {"slow_call": {"over": "1s", "ratio": "50%"}, "minimum_calls": 2}
    send = bench.route(pace={**SLOW, "rate": "12/m"}, circuit_breaker=breaker)
    await bench.clock.complete(asyncio.gather(send(), send(), send()))
    assert seconds(bench) == [0, 5, 10]
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "closed"


async def test_a_wait_is_none_of_the_attempts_time() -> None:
    """An attempt that waited for longer than its timeout has all of it left."""
    bench = Bench(answer())
    send = bench.route(pace=SLOW, attempt_timeout="500ms")
    responses = await bench.clock.complete(asyncio.gather(send(), send(), send()))
    assert [response.status for response in responses] == [200, 200, 200]


async def test_what_was_not_sent_is_not_counted() -> None:
    """A connection that could not be made costs nothing of a stated quota."""
    two_left = ok(x_ratelimit_limit="60", x_ratelimit_remaining="2", x_ratelimit_reset="60")
    bench = Bench(two_left, fail(ConnectFailed()), fail(ConnectionReset()), answer())
    send = bench.route(pace={})
    assert [(await send()).status for _ in range(4)] == [200, 502, 502, 200]
    assert code(await send()) == "pace_exceeded"


# -- what a refusal by the provider teaches --------------------------------------------------------


async def test_retry_after_holds_all_back_and_is_waited_for_once() -> None:
    """A 429 with Retry-After: nothing goes before that, then the one that was refused, then the others."""
    bench = Bench(answer(429, b"", (b"Retry-After", b"6")), answer())
    send = bench.route(pace={"rate": "60/m"}, retry={"attempts": 2, "backoff": QUICK})
    refused = send(target=b"/refused")
    await bench.clock.advance(2)
    other = send(target=b"/other")
    await bench.clock.complete(asyncio.gather(refused, other))
    assert seconds(bench)[:2] == [0, 6]
    assert [exchange.request.target for exchange in bench.seen] == [b"/refused", b"/refused", b"/other"]
    assert 6 < seconds(bench)[2] <= 10


async def test_a_retry_after_beyond_the_patience_is_for_the_ladder() -> None:
    """While the provider asks for longer than anybody waits, requests are refused at once."""
    bench = Bench(answer(429, b"", (b"Retry-After", b"30")), answer())
    send = bench.route(pace={"patience": "10s"})
    assert (await send()).status == 429
    response = await send()
    assert (code(response), retry_after(response)) == ("pace_exceeded", b"30")
    await bench.clock.advance(25)
    sent = send()
    await bench.clock.advance(5)
    assert (await sent).status == 200


async def test_those_who_wait_learn_that_it_is_in_vain() -> None:
    """A Retry-After beyond their patience ends the wait of all at once."""
    bench = Bench(answer(), answer(429, b"", (b"Retry-After", b"60")))
    send = bench.route(pace={"rate": "60/m", "patience": "5s"})
    waiting = [send() for _ in range(5)]
    await bench.clock.advance(1)
    assert [code(await request) for request in waiting[2:]] == ["pace_exceeded"] * 3


async def test_a_429_without_a_word_is_found_out_by_one() -> None:
    """After a pause a single request asks again, and one that was not refused; then all go on."""
    bench = Bench(answer(), answer(429), hang(), answer())
    send = bench.route(pace={"rate": "60/m", "patience": "1m"})
    waiting = [send() for _ in range(6)]
    await bench.clock.advance(1)  # the second is refused
    assert (await waiting[1]).status == 429
    await bench.clock.advance(5)
    assert seconds(bench) == [0, 1, 2]  # the third finds out: its answer is still to come
    waiting[2].cancel()
    await bench.clock.advance(0)
    assert len(bench.calls) == 4  # which is now up to the fourth
    await bench.clock.advance(10)
    assert [request.done() for request in waiting[3:]] == [True, True, True]


async def test_too_fast_in_the_body_slows_down_too() -> None:
    """Google's OVER_QUERY_LIMIT in a 200, twice, then OK: the client sees OK, after three attempts."""
    json = (b"Content-Type", b"application/json")
    too_fast = answer(200, b'{"status": "OVER_QUERY_LIMIT", "results": []}', json)
    bench = Bench(too_fast, too_fast, answer(200, b'{"status": "OK", "results": []}', json))
    send = bench.route(
        classify=rules("google-maps"),
        pace={"rate": "50/s"},
        retry={"attempts": 3, "backoff": QUICK},
        circuit_breaker={"consecutive": 1},
    )
    response = await bench.clock.complete(send())
    assert response.body == b'{"status": "OK", "results": []}'
    assert seconds(bench) == [0, 0.1, 0.2]  # retry's own waits: pace adds none to them
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "closed"
    assert (bench.metrics.paces["app"].pacer.pace(bench.clock.now()) or 50) < 50


# -- hold ------------------------------------------------------------------------------------------


async def test_out_of_credit_is_asked_once() -> None:
    """`insufficient_quota`: one call, no retry; then answers at once, and no call until the hold ends."""
    error = b'{"error": {"type": "insufficient_quota", "code": "insufficient_quota"}}'
    bench = Bench(answer(429, error, (b"Content-Type", b"application/json")), answer())
    send = bench.route(
        classify=rules("openai"),
        pace={},
        retry={"attempts": 3, "backoff": QUICK},
        circuit_breaker={"consecutive": 1},
    )
    assert (await send()).status == 429
    for left in (60, 40, 20):
        response = await send()
        assert (response.status, code(response)) == (503, "quota_held")
        assert retry_after(response) == b"%d" % left
        await bench.clock.advance(20)
    assert seconds(bench) == [0]
    assert bench.clock.slept == []
    assert bench.sent[1].note_list == [("pace", "rejected=held")]
    assert bench.metrics.route("all", "app").pace_rejections == {"held": 3}
    assert bench.metrics.breakers["app"].breaker.state(bench.clock.now()).value == "closed"


async def test_the_ladder_answers_while_the_quota_is_held() -> None:
    """Out of credit, and then held: the template answers in the same moment; the upstream is asked once."""
    error = b'{"error": {"code": "insufficient_quota"}}'
    bench = Bench(answer(429, error, (b"Content-Type", b"application/json")))
    send = bench.route(
        classify=rules("openai"), pace={}, fallback=[{"respond": {"status": 200, "json": {"choices": []}}}]
    )
    for _ in range(3):
        response = await send()
        assert (response.status, response.body) == (200, b'{"choices":[]}')
    assert seconds(bench) == [0]
    assert bench.clock.now() == START


async def test_the_ladder_answers_who_would_wait_too_long() -> None:
    """Without a turn in time the template answers at once."""
    bench = Bench(answer())
    send = bench.route(
        pace={**SLOW, "patience": "1s"}, fallback=[{"respond": {"status": 200, "text": "later"}}]
    )
    bodies = [
        response.body for response in await bench.clock.complete(asyncio.gather(*(send() for _ in range(4))))
    ]
    assert bodies == [b"ok", b"ok", b"later", b"later"]
    assert seconds(bench) == [0, 1]


async def test_a_single_request_probes_when_the_hold_ends() -> None:
    """Of ten that come then one is sent; when it is well, all are."""
    slow = Bench()
    gate = asyncio.Event()

    async def probe(_: Exchange) -> Response:
        await gate.wait()
        response = Response(200, [], b"ok")
        response.verdict = Verdict.OK
        return response

    slow.script = [out_of_credit(), probe, well()]
    send = as_scripted(slow, pace={"hold": "30s"})
    await send()
    await slow.clock.advance(30)
    ten = [send() for _ in range(10)]
    await settle()
    assert seconds(slow) == [0, 30]
    assert [code(await request) for request in ten[1:]] == ["quota_held"] * 9
    gate.set()
    assert (await ten[0]).status == 200
    assert [(await send()).status for _ in range(5)] == [200] * 5


async def test_a_probe_that_finds_nothing_begins_another_hold() -> None:
    """Still out of credit: held for as long again."""
    bench = Bench(out_of_credit(), out_of_credit(), well())
    send = as_scripted(bench, pace={})
    for _ in range(3):
        await send()
        await bench.clock.advance(30)
        assert (await send()).status in (200, 503)
        await bench.clock.advance(30)
    assert seconds(bench) == [0, 60, 120, 150]


@pytest.mark.parametrize("end", ["cancelled", "broken", "transient"])
async def test_a_probe_that_says_nothing_leaves_it_to_the_next(end: str) -> None:
    """A probe that is cancelled, breaks or meets a 5xx does not end the hold, and the next one probes."""
    outcome = {
        "cancelled": hang(),
        "broken": fail(ConnectionReset()),
        "transient": stated(b"", Verdict.TRANSIENT, 503),
    }[end]
    bench = Bench(out_of_credit(), outcome, hang())
    send = as_scripted(bench, pace={})
    await send()
    await bench.clock.advance(60)
    probe = send()
    await settle()
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    next_one, other = send(), send()
    assert code(await other) == "quota_held"
    assert len(bench.calls) == 3
    next_one.cancel()


@pytest.mark.parametrize(
    ("headers", "seconds_held"),
    [
        ({"retry_after": "300"}, 300),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0s"}, 360),
        ({"ratelimit": '"day";r=0;t=900'}, 900),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": "1700000120"}, 120),
        ({"retry_after": "9999999"}, 86400),
        ({}, 60),
    ],
)
async def test_the_providers_reset_ends_the_hold(headers: dict[str, str], seconds_held: int) -> None:
    """A hold lasts until the reset that the answer states, a day at most; else as long as `hold` says."""
    bench = Bench(out_of_credit(**headers), well())
    send = as_scripted(bench, pace={})
    await send()
    await bench.clock.advance(seconds_held - 0.1)
    assert code(await send()) == "quota_held"
    await bench.clock.advance(0.2)
    await bench.clock.complete(send())
    assert len(bench.calls) == 2


async def test_a_hold_refuses_those_who_wait() -> None:
    """Who waits for a turn when the quota is found used up is answered at once."""
    bench = Bench(well(), out_of_credit())
    send = as_scripted(bench, pace=SLOW)
    waiting = [send() for _ in range(4)]
    await bench.clock.advance(1)
    assert [code(await request) for request in waiting[2:]] == ["quota_held"] * 2


async def test_hold_can_be_off() -> None:
    """`hold: off`: a quota that is used up holds nothing back."""
    bench = Bench(out_of_credit())
    send = as_scripted(bench, pace={"hold": "off"})
    assert [(await send()).status for _ in range(3)] == [429] * 3
    assert len(bench.calls) == 3


# -- shadow, state, metrics ------------------------------------------------------------------------


async def test_shadow_notes_and_refuses_nothing() -> None:
    """In shadow mode everything goes at once; what would have waited or been refused is told."""
    bench = Bench(answer())
    send = bench.route(pace={**SLOW, "patience": "1s", "mode": "shadow"})
    responses = await asyncio.gather(send(), send(), send(), send())
    assert [response.status for response in responses] == [200] * 4
    assert seconds(bench) == [0, 0, 0, 0]
    notes = [exchange.note_list for exchange in bench.sent]
    would_reject = [("pace", "would-reject")]
    assert notes == [None, [("pace", "would-wait=1.000")], would_reject, would_reject]
    cells = bench.metrics.route("all", "app")
    assert (cells.shadow_rejections, cells.pace_rejections) == ({"pace": 2}, {})


async def test_shadow_holds_nothing() -> None:
    """In shadow mode a quota that is used up is noted, and requests go on."""
    bench = Bench(out_of_credit(), well())
    send = as_scripted(bench, pace={"mode": "shadow"})
    assert [(await send()).status for _ in range(3)] == [429, 200, 200]
    assert bench.metrics.route("all", "app").shadow_rejections == {"pace": 2}


async def test_what_is_learnt_is_the_upstreams() -> None:
    """Routes with other patience share a pacer, and a reload keeps it; another rate has one of its own."""
    bench = Bench(answer(429, b"", (b"Retry-After", b"30")), answer())
    assert (await bench.route("first", pace={})()).status == 429
    assert code(await bench.route("second", pace={"patience": "1s", "burst": 1})()) == "pace_exceeded"
    assert (await bench.route("third", pace={"rate": "9/s"})()).status == 200
    assert list(bench.metrics.paces) == ["app", "app/third"]


async def test_what_it_does_is_measured() -> None:
    """Waits by class, the rate, what is left of the quota, and a hold, can be read."""
    bench = Bench(
        ok(x_ratelimit_limit="60", x_ratelimit_remaining="30", x_ratelimit_reset="60"), out_of_credit()
    )
    send = as_scripted(bench, pace={})
    await send()
    cells = bench.metrics.paces["app"]
    now = bench.clock.now()
    assert cells.pacer.remaining(now) == 30
    assert cells.pacer.pace(now) == pytest.approx(0.5)
    assert cells.pacer.held_for(now) is None
    assert (await send()).status == 429
    assert cells.pacer.held_for(bench.clock.now()) == 60


async def test_waits_are_measured_by_class() -> None:
    """How long interactive and batch requests waited; who did not wait is left out."""
    bench = Bench(answer())
    send = bench.route(pace=SLOW)
    await bench.clock.complete(asyncio.gather(send(), send(), send(priority="u=7")))
    cells = bench.metrics.paces["app"]
    assert [sum(waits.buckets) for waits in (cells.interactive, cells.batch)] == [1, 1]
    assert [waits.seconds for waits in (cells.interactive, cells.batch)] == [1.0, 2.0]

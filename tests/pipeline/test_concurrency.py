"""`concurrency_limit` among the other layers: what it learns from, who goes first, and its shadow mode."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.decisions.gradient import LEAST_WINDOW, AdaptiveLimit
from sidecar.errors import (
    AttemptTimeout,
    BadUpstreamResponse,
    ConnectFailed,
    ConnectionReset,
    PaceExceeded,
)
from sidecar.exchange import End, Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, Send, answer, fail, hang, stream

ADAPTIVE = {"adaptive": {"initial": 20, "min": 2, "max": 64}}


def after(bench: Bench, seconds: float, outcome: Outcome) -> Outcome:
    """An attempt that comes to `outcome` after so many seconds."""

    async def late(exchange: Exchange) -> Any:
        await bench.clock.sleep(seconds)
        return await outcome(exchange)

    return late


def adaptive(bench: Bench) -> AdaptiveLimit:
    limit = bench.metrics.limits["app"]
    assert isinstance(limit, AdaptiveLimit)
    return limit


def code(response: Response) -> str:
    value = response.header(b"sidecar-error")
    return value.decode() if value is not None else ""


async def several(send: Send, bench: Bench, count: int, seconds: float) -> list[Response]:
    tasks = [send() for _ in range(count)]
    await bench.clock.advance(seconds)
    return await asyncio.gather(*tasks)


async def test_learns_the_time_to_the_first_byte() -> None:
    """The average of a window of answers is the baseline; that a body is still streaming changes nothing."""
    bench = Bench()
    body = Stream(None)
    bench.script = [after(bench, 0.25, answer())] * 19 + [after(bench, 0.5, stream(body))]
    send = bench.route(concurrency_limit=ADAPTIVE)
    await several(send, bench, 20, 1.0)
    assert adaptive(bench).baseline == pytest.approx((19 * 0.25 + 0.5) / 20)
    assert adaptive(bench).in_flight == 1
    body.finish()
    assert adaptive(bench).in_flight == 0


async def test_waiting_in_our_own_queue_is_no_part_of_it() -> None:
    """Those that waited a second for their turn and were answered in a tenth count as a tenth."""
    bench = Bench()
    bench.script = [after(bench, 0.1, answer())]
    limit = {"adaptive": {"initial": 2, "min": 2, "max": 2}, "queue": "10s"}
    await several(bench.route(concurrency_limit=limit), bench, 20, 2.0)
    assert adaptive(bench).baseline == pytest.approx(0.1)


async def test_back_off_is_no_part_of_it() -> None:
    """Of a request that was retried each attempt counts by itself."""
    bench = Bench()
    bench.script = [after(bench, 0.1, answer(500)), after(bench, 0.1, answer())] * LEAST_WINDOW
    send = bench.route(
        concurrency_limit={"adaptive": {"initial": 8}},
        retry={"attempts": 2, "backoff": {"strategy": "fixed", "base": "5s", "max": "5s"}, "budget": "off"},
    )
    for _ in range(LEAST_WINDOW):
        assert (await bench.clock.complete(send())).status == 200
    assert adaptive(bench).baseline == pytest.approx(0.1)


async def test_event_streams_tell_nothing_and_hold_nothing() -> None:
    """A stream that may last for hours is no sample, and takes no permit once it has begun."""
    bench = Bench()
    bodies = [Stream(None) for _ in range(30)]
    bench.script = [after(bench, 9.0, stream(body, content_type="text/event-stream")) for body in bodies]
    send = bench.route(concurrency_limit=ADAPTIVE)
    await several(send, bench, 20, 10.0)
    assert (adaptive(bench).baseline, adaptive(bench).in_flight) == (0, 0)
    for body in bodies:
        body.finish()
    assert adaptive(bench).in_flight == 0


async def test_tunnels_tell_nothing_and_hold_nothing() -> None:
    """The same for what is no HTTP any more."""

    class Joined:
        inbound = None

        def write(self, data: bytes) -> None: ...
        def write_eof(self) -> None: ...
        async def drain(self) -> None: ...
        def close(self) -> None: ...
        def on_end(self, callback: Any) -> None:
            callback(End.DONE)

    async def joins(_: Exchange) -> Response:
        response = Response(101, [])
        response.tunnel = Joined()
        return response

    bench = Bench()
    bench.script = [after(bench, 9.0, joins)]
    await several(bench.route(concurrency_limit=ADAPTIVE), bench, 20, 10.0)
    assert (adaptive(bench).baseline, adaptive(bench).in_flight) == (0, 0)


async def test_a_fixed_limit_counts_event_streams_to_their_end() -> None:
    """The operator said how many: a stream is one of them."""
    body = Stream(None)
    bench = Bench(stream(body, content_type="text/event-stream"), answer())
    send = bench.route(concurrency_limit={"max": 1})
    await send()
    assert (await send()).status == 503
    body.finish()
    assert (await send()).status == 200


@pytest.mark.parametrize(
    ("outcome", "falls"),
    [
        (fail(ConnectionReset()), True),
        (fail(AttemptTimeout()), True),
        (answer(503), True),
        (fail(ConnectFailed()), False),
        (fail(BadUpstreamResponse()), False),
        (fail(PaceExceeded()), False),
        (answer(500), False),
        (answer(429), False),
        (answer(401), False),
        (answer(404), False),
        (answer(200), False),
    ],
    ids=[
        "reset",
        "timeout",
        "503",
        "no connection",
        "no HTTP",
        "refused by pace",
        "500",
        "429",
        "401",
        "404",
        "200",
    ],
)
async def test_what_overload_causes_lowers_the_limit(outcome: Outcome, falls: bool) -> None:
    """Resets, timeouts and 503 do; what failed for another reason, or was never sent, does not."""
    bench = Bench(outcome)
    await bench.clock.complete(bench.route(concurrency_limit=ADAPTIVE)())
    assert adaptive(bench).limit == (18 if falls else 20)
    assert adaptive(bench).in_flight == 0


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (answer(200), True),
        (answer(404), True),
        (answer(500), False),
        (answer(503), False),
        (answer(429), False),
        (answer(401), False),
        (fail(ConnectFailed()), False),
    ],
    ids=["200", "404", "500", "503", "429", "401", "no connection"],
)
async def test_only_answers_of_a_working_upstream_are_samples(outcome: Outcome, counts: bool) -> None:
    """A quick failure says nothing of how quick the upstream is."""
    bench = Bench()
    bench.script = [after(bench, 0.1, outcome)]
    send = bench.route(concurrency_limit={"adaptive": {"initial": 8}})
    for _ in range(LEAST_WINDOW):
        await bench.clock.complete(send())
    assert (adaptive(bench).baseline > 0) is counts


async def test_a_client_that_leaves_is_no_failure() -> None:
    """Nor a sample: it is ignored."""
    bench = Bench(hang())
    send = bench.route(concurrency_limit=ADAPTIVE)
    sent = send()
    await bench.clock.advance(5.0)
    sent.cancel()
    await asyncio.gather(sent, return_exceptions=True)
    assert (adaptive(bench).limit, adaptive(bench).in_flight) == (20, 0)


async def test_an_attempt_that_times_out_lowers_the_limit() -> None:
    """With the timer where it stands: below."""
    bench = Bench(hang())
    send = bench.route(concurrency_limit=ADAPTIVE, attempt_timeout="1s")
    responses = await several(send, bench, 20, 1.1)
    assert {response.status for response in responses} == {504}
    assert adaptive(bench).limit == 18


# -- classes -------------------------------------------------------------------------------------


async def test_routes_of_one_limit_share_it_whatever_their_class() -> None:
    """`priority` is no part of what makes a limit: the `high` route goes before, in the same queue."""
    body = Stream(None)
    bench = Bench(stream(body), answer())
    limit = {"max": 1, "queue": "10s"}
    low = bench.route("reports", concurrency_limit={**limit, "priority": "low"})
    normal = bench.route("search", concurrency_limit=limit)
    high = bench.route("checkout", concurrency_limit={**limit, "priority": "high"})
    await normal()
    waiting = [low(), normal(), high()]
    await settle()
    assert bench.metrics.queues["app"].waiting == 3
    body.finish()
    await asyncio.gather(*waiting)
    started = [bench.sent.index(exchange) for exchange in bench.seen]
    assert started == [0, 3, 2, 1]
    assert list(bench.metrics.limits) == ["app"]


async def test_a_client_may_lower_its_own_request() -> None:
    """`Priority: u=6` goes after those that say nothing; `u=0` gains nothing."""
    body = Stream(None)
    bench = Bench(stream(body), answer())
    send = bench.route(concurrency_limit={"max": 1, "queue": "10s"})
    await send()
    waiting = [send(priority="u=6"), send(), send(priority="u=0")]
    await settle()
    body.finish()
    await asyncio.gather(*waiting)
    assert [bench.sent.index(exchange) for exchange in bench.seen] == [0, 2, 3, 1]


async def test_background_requests_leave_a_tenth() -> None:
    """Of ten permits those that call themselves background get nine."""
    bench = Bench(hang())
    send = bench.route(concurrency_limit={"max": 10})
    tasks = [send(priority="u=7") for _ in range(12)]
    await settle()
    assert [task.done() for task in tasks] == [False] * 9 + [True] * 3
    last = send()
    await settle()
    assert not last.done()
    for task in (*tasks[:9], last):
        task.cancel()
    await asyncio.gather(*tasks, last, return_exceptions=True)


# -- what is told --------------------------------------------------------------------------------


async def test_a_refusal_says_when_to_come_back() -> None:
    """503 with Retry-After, counted and noted."""
    bench = Bench(hang())
    send = bench.route(concurrency_limit={"max": 1})
    holder = send()
    await settle()
    response = await send()
    assert (response.status, code(response), response.header(b"retry-after")) == (503, "limit_exceeded", b"1")
    assert bench.metrics.routes["all"].limit_rejections == 1
    assert bench.sent[1].note_list == [("concurrency_limit", "rejected")]
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)


async def test_who_waited_is_noted() -> None:
    """And who did not, is not."""
    body = Stream(None)
    bench = Bench(stream(body), answer())
    send = bench.route(concurrency_limit={"max": 1, "queue": "1s"})
    await send()
    waiting = send()
    await settle()
    body.finish()
    await waiting
    assert [exchange.note_list for exchange in bench.sent] == [None, [("concurrency_limit", "queued")]]


async def test_who_has_no_time_left_for_the_work_is_refused_at_once() -> None:
    """Answers take a second, and the deadline leaves one that waits less than that."""
    bench = Bench()
    bench.script = [after(bench, 1.0, answer())]
    patient = bench.route("patient", concurrency_limit={"max": 1, "queue": "60s"})
    hurried = bench.route("hurried", concurrency_limit={"max": 1, "queue": "60s"}, deadline="0.9s")
    for _ in range(25):
        patient()
    await bench.clock.advance(23.2)
    started = bench.clock.now()
    response = await hurried()
    assert (response.status, code(response)) == (503, "limit_exceeded")
    assert bench.clock.now() == started
    await bench.clock.advance(20)
    assert len(bench.calls) == 25


# -- shadow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"max": 4}, {"adaptive": {"initial": 4}}], ids=["fixed", "adaptive"])
async def test_in_shadow_nobody_is_refused_and_nobody_waits(limit: dict[str, object]) -> None:
    """Ten at once at a limit of four: all pass at once, six are noted and counted."""
    bench = Bench()
    bench.script = [after(bench, 0.1, answer())]
    send = bench.route(concurrency_limit={**limit, "queue": "1s", "mode": "shadow"})
    responses = await several(send, bench, 10, 0.1)
    assert {response.status for response in responses} == {200}
    cells = bench.metrics.routes["all"]
    assert (cells.limit_rejections, cells.shadow_rejections) == (0, {"concurrency_limit": 6})
    noted = [exchange.note_list for exchange in bench.sent]
    assert noted == [None] * 4 + [[("concurrency_limit", "would-reject")]] * 6
    assert bench.metrics.limits["app"].in_flight == 0


async def test_in_shadow_an_adaptive_limit_learns() -> None:
    """What it would come to can be read from the metrics."""
    bench = Bench()
    bench.script = [after(bench, 0.1, answer())]
    send = bench.route(concurrency_limit={**ADAPTIVE, "mode": "shadow"})
    for _ in range(5):
        await several(send, bench, 20, 0.2)
    assert adaptive(bench).limit > 20


async def test_a_shadow_takes_no_permit_of_others() -> None:
    """A route in shadow mode has a limit of its own."""
    bench = Bench(hang())
    shadow = bench.route("shadow", concurrency_limit={"max": 1, "mode": "shadow"})
    enforced = bench.route("enforced", concurrency_limit={"max": 1})
    tasks = [shadow(), shadow(), enforced()]
    await settle()
    assert not any(task.done() for task in tasks)
    assert (await enforced()).status == 503
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""How the layers act on one another: each test is a row of settings, outcomes, and what must follow."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.errors import AttemptTimeout, ConnectFailed, ConnectionReset
from sidecar.exchange import End, Exchange, Response, Stream
from sidecar.pipeline import ORDER
from tests.support.clock import settle
from tests.support.script import Bench, answer, fail, hang, stream

BREAKER = {"consecutive": 2, "open_for": "10s", "half_open_probes": 1}
QUICK = {"strategy": "fixed", "base": "100ms", "max": "100ms"}


def code(response: Response) -> str:
    value = response.header(b"sidecar-error")
    return value.decode() if value is not None else ""


async def open_breaker(bench: Bench, **settings: object) -> None:
    """Fails twice, so that the breaker of BREAKER's settings opens."""
    send = bench.route("opener", circuit_breaker=BREAKER, **settings)
    for _ in range(2):
        assert (await send()).status == 502
    assert breaker_state(bench) == "open"
    bench.calls.clear()


def breaker_state(bench: Bench, scope: str = "app") -> str:
    return bench.metrics.breakers[scope].breaker.state(bench.clock.now()).value


def test_the_order() -> None:
    """The layers stand in this order, outermost first."""
    assert [step.name for step in ORDER] == [
        "observe",
        "rate_limit",
        "fallback",
        "cache",
        "overlap",
        "deadline",
        "retry",
        "circuit_breaker",
        "concurrency_limit",
        "pace",
        "attempt_timeout",
        "classify",
        "fault",
    ]


async def test_open_breaker_is_not_retried() -> None:
    """With the breaker open a route with retries calls the upstream 0 times and does not sleep."""
    bench = Bench(fail(ConnectionReset()))
    await open_breaker(bench)
    send = bench.route(circuit_breaker=BREAKER, retry={"attempts": 3, "backoff": QUICK})
    response = await send()
    assert (response.status, code(response)) == (503, "circuit_open")
    assert response.header(b"retry-after") == b"10"
    assert bench.calls == []
    assert bench.clock.slept == []


async def test_deadline_alone_ends_a_hanging_attempt() -> None:
    """A hanging attempt ends at the deadline with 504, and counts as one failure in the breaker."""
    bench = Bench(hang())
    send = bench.route(deadline="2s", circuit_breaker={"consecutive": 1}, retry={"attempts": 3})
    sent = send()
    await bench.clock.advance(1.99)
    assert not sent.done()
    await bench.clock.advance(0.02)
    response = await sent
    assert (response.status, code(response)) == (504, "attempt_timeout")
    assert len(bench.calls) == 1
    assert breaker_state(bench) == "open"


async def test_the_attempt_gets_what_is_left() -> None:
    """The second attempt may take what the first and the back-off left of the deadline, not more."""
    bench = Bench(hang())
    send = bench.route(deadline="5s", attempt_timeout="3s", retry={"attempts": 2, "backoff": QUICK})
    response = await bench.clock.complete(send())
    assert response.status == 504
    assert bench.calls == [1000.0, pytest.approx(1003.1)]
    assert bench.clock.now() == pytest.approx(1005.0)


async def test_cancelled_probe_decides_nothing() -> None:
    """A half-open probe whose client leaves neither closes nor opens: the next may probe."""
    bench = Bench(fail(ConnectionReset()))
    await open_breaker(bench)
    await bench.clock.advance(10)
    bench.script = [hang(), answer()]
    send = bench.route(circuit_breaker=BREAKER)
    probe = send()
    await settle()
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert breaker_state(bench) == "half_open"
    assert (await send()).status == 200
    assert breaker_state(bench) == "closed"


async def test_full_limiter_releases_the_probe() -> None:
    """A probe that finds the limiter full says nothing of the upstream: the breaker stays half-open."""
    bench = Bench(fail(ConnectionReset()))
    await open_breaker(bench)
    await bench.clock.advance(10)
    bench.script = [hang(), answer()]
    bench.calls.clear()
    limited = bench.route("limited", concurrency_limit={"max": 1})
    holder = limited()
    await settle()
    send = bench.route(circuit_breaker=BREAKER, concurrency_limit={"max": 1})
    response = await send()
    assert (response.status, code(response)) == (503, "limit_exceeded")
    assert breaker_state(bench) == "half_open"
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    assert (await send()).status == 200


@pytest.mark.parametrize("how", ["finished", "client left", "broken"])
async def test_slot_is_held_while_the_body_streams(how: str) -> None:
    """The limiter's slot is held until the body is through, however it ends."""
    body = Stream(None)
    bench = Bench(stream(body), answer())
    send = bench.route(concurrency_limit={"max": 1})
    first = await send()
    body.feed(b"part")
    assert (await send()).status == 503
    if how == "finished":
        body.finish()
    elif how == "client left":
        first.close()
    else:
        body.fail(ConnectionReset())
    assert (await send()).status == 200


@pytest.mark.parametrize(("method", "error", "attempts"), [
    ("POST", ConnectFailed(), 2),
    ("POST", ConnectionReset(), 1),
    ("POST", AttemptTimeout(), 1),
    ("GET", ConnectionReset(), 2),
    ("PUT", AttemptTimeout(), 2),
])  # fmt: skip
async def test_only_what_is_safe_is_repeated(method: str, error: Exception, attempts: int) -> None:
    """A POST is repeated when nothing was sent, else not; idempotent methods are."""
    assert isinstance(error, ConnectFailed | ConnectionReset | AttemptTimeout)
    bench = Bench(fail(error), answer())
    response = await bench.clock.complete(bench.route(retry={"attempts": 3, "backoff": QUICK})(method))
    assert len(bench.calls) == attempts
    assert response.status == (200 if attempts == 2 else error.status)


async def test_discarded_response_is_closed_first() -> None:
    """A 503 that is retried has its body closed before the next attempt starts."""
    body = Stream(None)
    seen: list[End | None] = []

    async def second(_: Exchange) -> Response:
        seen.append(body.end)
        return Response(200, [], b"ok")

    bench = Bench(stream(body, status=503), second)
    response = await bench.clock.complete(bench.route(retry={"attempts": 2, "backoff": QUICK})())
    assert response.status == 200
    assert seen == [End.DROPPED]


async def test_empty_budget_gives_the_original_error() -> None:
    """Without budget there is no retry: the error of the attempt is the answer, and the skip is counted."""
    bench = Bench(fail(ConnectionReset()))
    send = bench.route(retry={"attempts": 2, "budget": {"ratio": "0%", "min_per_second": 0}})
    response = await send()
    assert (response.status, code(response)) == (502, "upstream_reset")
    assert len(bench.calls) == 1
    assert bench.metrics.route("all", "app").retries_skipped == {"budget": 1}


async def test_retry_after_is_a_floor() -> None:
    """The next attempt waits as long as Retry-After asks, though the back-off is shorter."""
    bench = Bench(answer(503, b"", (b"Retry-After", b"3")), answer())
    response = await bench.clock.complete(bench.route(retry={"attempts": 2, "backoff": QUICK})())
    assert response.status == 200
    assert bench.calls == [1000.0, 1003.0]


async def test_retry_after_beyond_patience_is_passed_on() -> None:
    """A Retry-After longer than `retry_after_max` ends the retrying at once."""
    bench = Bench(answer(503, b"", (b"Retry-After", b"30")), answer())
    response = await bench.route(retry={"attempts": 2, "retry_after_max": "5s"})()
    assert (response.status, response.header(b"retry-after")) == (503, b"30")
    assert len(bench.calls) == 1


async def test_no_retry_that_ends_after_the_deadline() -> None:
    """A back-off that would end past the deadline is not begun."""
    bench = Bench(fail(ConnectionReset()))
    long = {"strategy": "fixed", "base": "3s", "max": "3s"}
    response = await bench.route(deadline="2s", retry={"attempts": 2, "backoff": long})()
    assert response.status == 502
    assert bench.clock.slept == []


async def test_streamed_body_is_replayed() -> None:
    """A body that streamed to the first attempt is sent again from its start to the second."""
    body = Stream(None, 6)
    got: list[bytes] = []

    async def reads_then_breaks(exchange: Exchange) -> Response:
        assert isinstance(exchange.request.body, Stream)
        got.append(await exchange.request.body.read())
        raise ConnectionReset

    async def reads_all(exchange: Exchange) -> Response:
        assert isinstance(exchange.request.body, Stream)
        parts = []
        while part := await exchange.request.body.read():
            parts.append(part)
        got.append(b"".join(parts))
        return Response(200, [], b"ok")

    bench = Bench(reads_then_breaks, reads_all)
    body.feed(b"abc")
    sent = bench.route(retry={"attempts": 2, "backoff": QUICK})("PUT", body)
    await bench.clock.advance(0.05)
    body.feed(b"def")
    body.finish()
    assert (await bench.clock.complete(sent)).status == 200
    assert got == [b"abc", b"abcdef"]


async def test_body_over_the_bound_is_sent_once() -> None:
    """A body larger than `max_body` is not kept: no retry, and the skip is in the trail."""
    body = Stream(None, 10)
    bench = Bench(fail(ConnectionReset()), answer())
    response = await bench.route(retry={"attempts": 2, "max_body": "4B"})("PUT", body)
    assert response.status == 502
    assert bench.seen[0].note_list is not None
    assert bench.seen[0].note_list[-1] == ("retry", "skipped=body-too-large")


async def test_broken_body_is_a_failure() -> None:
    """A response that breaks off within its body counts against the upstream."""
    body = Stream(None)
    bench = Bench(stream(body))
    await bench.route(circuit_breaker={"consecutive": 1})()
    assert breaker_state(bench) == "closed"
    body.fail(ConnectionReset())
    assert breaker_state(bench) == "open"


async def test_client_that_leaves_is_no_failure() -> None:
    """A client that leaves while its body streams says nothing of the upstream."""
    body = Stream(None)
    bench = Bench(stream(body))
    response = await bench.route(circuit_breaker={"consecutive": 1})()
    response.close()
    assert breaker_state(bench) == "closed"


async def test_queued_request_gets_the_next_slot() -> None:
    """Who waits in the queue goes on when a slot is given back, in order of arrival."""
    first_body = Stream(None)
    bench = Bench(stream(first_body), answer())
    send = bench.route(concurrency_limit={"max": 1, "queue": "1s"})
    await send()
    waiting = [send(), send()]
    await settle()
    assert len(bench.calls) == 1
    first_body.finish()
    responses = await asyncio.gather(*waiting)
    assert [response.status for response in responses] == [200, 200]


async def test_queue_patience_ends() -> None:
    """A wait in the queue ends after its time, and leaves nothing behind."""
    bench = Bench(hang())
    send = bench.route(concurrency_limit={"max": 1, "queue": "1s"})
    holder = send()
    await settle()
    waiting = send()
    await bench.clock.advance(1.01)
    response = await waiting
    assert (response.status, code(response)) == (503, "limit_exceeded")
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    limit = bench.metrics.limits["app"]
    assert limit.in_flight == 0


async def test_listed_status_is_transient() -> None:
    """A status that `retry.on.statuses` lists is retried, and counts as a failure in the breaker."""
    bench = Bench(answer(404))
    send = bench.route(
        retry={"attempts": 2, "backoff": QUICK, "on": {"statuses": [404]}}, circuit_breaker={"consecutive": 2}
    )
    response = await bench.clock.complete(send())
    assert response.status == 404
    assert len(bench.calls) == 2
    assert breaker_state(bench) == "open"


async def test_client_fault_is_no_failure() -> None:
    """A 4xx is the client's affair: not retried, a success to the breaker."""
    bench = Bench(answer(404))
    response = await bench.route(retry={"attempts": 3}, circuit_breaker={"consecutive": 1})()
    assert response.status == 404
    assert len(bench.calls) == 1
    assert breaker_state(bench) == "closed"


async def test_breaker_of_another_settings_is_another() -> None:
    """What was learnt of an upstream is kept while the settings are unchanged, and only then."""
    bench = Bench(fail(ConnectionReset()))
    await open_breaker(bench)
    same = bench.route("same", circuit_breaker=BREAKER)
    assert code(await same()) == "circuit_open"
    other = bench.route("other", circuit_breaker={**BREAKER, "consecutive": 7})
    assert code(await other()) == "upstream_reset"

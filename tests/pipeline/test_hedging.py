"""A second attempt beside a slow one: when it is sent, who wins, and what becomes of the other."""

from __future__ import annotations

import asyncio
import dataclasses
import gc

import pytest

from sidecar.clock import SystemClock
from sidecar.decisions.quantile import SEEDS
from sidecar.errors import ConnectionReset, SidecarError
from sidecar.exchange import End, Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, Send, answer, fail, hang, stream
from tests.support.script import after as delayed

HEDGE = {"attempts": 2, "hedge": {"after": "100ms"}}
NO_RETRY = {"on": {"verdicts": [], "errors": ["connect"]}}
"""What fails is not repeated: only hedges are second attempts."""


def after(seconds: float, status: int = 200, body: bytes | Stream = b"ok") -> Outcome:
    """An answer that takes its time."""
    return delayed(seconds, answer(status, body) if isinstance(body, bytes) else stream(body, status))


def fails_after(seconds: float, error: SidecarError) -> Outcome:
    return delayed(seconds, fail(error))


def hedges(bench: Bench) -> dict[str, int]:
    return bench.metrics.route("all", "app").hedges


def trail(bench: Bench, number: int = -1) -> list[str]:
    """What was noted, but for what attempts came to."""
    notes = bench.sent[number].note_list or []
    return [f"{layer};{decision}" for layer, decision in notes if layer not in ("upstream", "classify")]


async def nothing_left(bench: Bench) -> None:
    """No task, no timer and no permit is left of what was sent."""
    await settle()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "hedge"] == []
    assert bench.clock.armed <= 1  # the route's own, which looks for slow attempts
    await bench.clock.advance(1.0)
    assert bench.clock.armed == 0
    assert all(limit.in_flight == 0 for limit in bench.metrics.limits.values())
    assert all(cells.breaker.probing == 0 for cells in bench.metrics.breakers.values())


async def test_a_slow_attempt_gets_company_and_the_first_answer_counts() -> None:
    """After the delay a second attempt starts; it answers first, and the first one is given up."""
    bench = Bench(after(5, body=b"late"), after(0.05, body=b"soon"))
    send = bench.route(retry=HEDGE, concurrency_limit={"max": 4}, circuit_breaker={})
    response = await bench.clock.complete(send())
    assert response.body == b"soon"
    assert bench.calls == [1000.0, pytest.approx(1000.1)]
    assert bench.clock.now() == pytest.approx(1000.15)
    assert hedges(bench) == {"won": 1}
    assert trail(bench) == ["retry;hedge", "retry;hedge-won"]
    assert bench.sent[0].attempts == 2
    assert bench.sent[0].upstream_seconds == pytest.approx(0.05)
    await nothing_left(bench)


async def test_a_first_attempt_that_is_quicker_after_all() -> None:
    """The hedge is cancelled: it counts as lost, and its permits are given back."""
    bench = Bench(after(0.15, body=b"first"), after(5))
    send = bench.route(retry=HEDGE, concurrency_limit={"max": 4}, circuit_breaker={})
    response = await bench.clock.complete(send())
    assert response.body == b"first"
    assert hedges(bench) == {"lost": 1}
    assert trail(bench) == ["retry;hedge", "retry;hedge-lost"]
    assert bench.sent[0].attempts == 2
    await nothing_left(bench)


async def test_a_quick_attempt_has_no_company() -> None:
    """Before the delay is over nothing is sent, and nothing is left of the timer."""
    bench = Bench(after(0.09))
    await bench.clock.complete(bench.route(retry=HEDGE)())
    await bench.clock.advance(10)
    assert len(bench.calls) == 1
    assert hedges(bench) == {}
    assert trail(bench) == []
    await nothing_left(bench)


@pytest.mark.parametrize("broken", [fails_after(0.02, ConnectionReset()), after(0.02, 503), after(0.02, 429)])
async def test_a_hedge_that_fails_leaves_the_first_attempt_going(broken: Outcome) -> None:
    """Its failure is noted, and the first attempt answers."""
    bench = Bench(after(1, body=b"first"), broken)
    response = await bench.clock.complete(bench.route(retry=HEDGE)())
    assert response.body == b"first"
    assert hedges(bench) == {"failed": 1}
    assert trail(bench) == ["retry;hedge", "retry;hedge-failed"]
    await nothing_left(bench)


@pytest.mark.parametrize("broken", [fails_after(0.15, ConnectionReset()), after(0.15, 503), after(0.15, 429)])
async def test_a_first_attempt_that_fails_leaves_the_hedge_going(broken: Outcome) -> None:
    """Its failure is not yet the end: the hedge answers, without another retry."""
    bench = Bench(broken, after(1, body=b"hedge"))
    response = await bench.clock.complete(bench.route(retry={**HEDGE, "attempts": 3})())
    assert response.body == b"hedge"
    assert len(bench.calls) == 2
    assert hedges(bench) == {"won": 1}
    await nothing_left(bench)


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_failed_answer_that_waits_for_the_hedge(leaves: bool) -> None:
    """Its body is held while the hedge may fail too, and given up when the hedge answers or nobody waits."""
    body = Stream(None)
    bench = Bench(after(0.15, 503, body), after(1))
    sent = bench.route(retry=HEDGE, concurrency_limit={"max": 4})()
    await bench.clock.advance(0.5)
    assert body.end is None
    if leaves:
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        assert sent.cancelled()
    else:
        assert (await bench.clock.complete(sent)).status == 200
    assert body.end is End.DROPPED
    await nothing_left(bench)


async def test_after_a_failure_no_further_hedge_starts() -> None:
    """The one under way decides; what comes then is a retry, which is waited for and judged."""
    bench = Bench(fails_after(0.15, ConnectionReset()), after(1))
    retry = {"attempts": 4, "hedge": {"after": "100ms", "max": 2}}
    assert (await bench.clock.complete(bench.route(retry=retry)())).status == 200
    assert len(bench.calls) == 2


async def test_two_hedges_that_win() -> None:
    """In one turn: the first of them has won, the other lost, and its body is closed."""
    bodies = [Stream(None), Stream(None)]
    answering: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def together(body: Stream) -> Outcome:
        async def outcome(_: Exchange) -> Response:
            await answering
            return Response(200, [], body)

        return outcome

    bench = Bench(hang(), together(bodies[0]), together(bodies[1]))
    retry = {"attempts": 3, "hedge": {"after": "100ms", "max": 2}}
    sent = bench.route(retry=retry, concurrency_limit={"max": 4})()
    await bench.clock.advance(0.2)
    answering.set_result(None)
    response = await sent
    assert response.body is bodies[0]
    assert (bodies[0].end, bodies[1].end) == (None, End.DROPPED)
    assert hedges(bench) == {"won": 1, "lost": 1}
    response.close()
    await nothing_left(bench)


async def test_an_answer_that_no_attempt_would_better_counts_at_once() -> None:
    """A 404 is an answer, whoever brings it."""
    bench = Bench(after(5), after(0.05, 404))
    response = await bench.clock.complete(bench.route(retry=HEDGE)())
    assert response.status == 404
    assert hedges(bench) == {"won": 1}
    bench = Bench(after(0.2, 401), after(5))
    response = await bench.clock.complete(bench.route(retry=HEDGE)())
    assert response.status == 401
    assert bench.clock.now() == pytest.approx(1000.2)
    assert hedges(bench) == {"lost": 1}


@pytest.mark.parametrize(("attempts", "calls"), [(2, 2), (3, 3)])
async def test_when_both_fail_the_usual_judgement_follows(attempts: int, calls: int) -> None:
    """The last failure is judged as any; a hedge counts among the attempts."""
    bench = Bench(after(0.2, 503), fails_after(0.2, ConnectionReset()), answer(503, b"third"))
    quick = {"strategy": "fixed", "base": "10ms", "max": "10ms"}
    retry = {"attempts": attempts, "hedge": {"after": "100ms"}, "backoff": quick}
    response = await bench.clock.complete(bench.route(retry=retry)())
    assert len(bench.calls) == calls
    assert response.status == (502 if attempts == 2 else 503)
    assert trail(bench)[-1] == "retry;skipped=attempts"
    assert ("retry;reset" in trail(bench)) == (attempts == 3)
    await nothing_left(bench)


async def test_both_bodies_but_the_chosen_one_are_closed() -> None:
    """A failed answer's body is given up before the next attempt, a beaten one's at once."""
    first, second, third = Stream(None), Stream(None), Stream(None)
    bench = Bench(after(0.2, 503, first), after(0.2, 503, second), after(0, 200, third))
    retry = {"attempts": 3, "hedge": {"after": "100ms"}, "backoff": {"base": "0ms"}}
    response = await bench.clock.complete(bench.route(retry=retry, concurrency_limit={"max": 4})())
    assert response.status == 200
    assert (first.end, second.end, third.end) == (End.DROPPED, End.DROPPED, None)
    assert bench.metrics.limits["app"].in_flight == 1
    third.finish()
    await nothing_left(bench)


@pytest.mark.parametrize("quicker", ["first", "hedge"])
async def test_two_answers_in_one_turn(quicker: str) -> None:
    """One is taken, and the body of the other is closed: none is lost between two tasks."""
    bodies: list[Stream] = []
    loop = asyncio.get_running_loop()
    gates = {"first": loop.create_future(), "hedge": loop.create_future()}

    def behind(gate: str) -> Outcome:
        async def outcome(_: Exchange) -> Response:
            await gates[gate]
            bodies.append(Stream(None))
            return Response(200, [], bodies[-1])

        return outcome

    bench = Bench(behind("first"), behind("hedge"))
    sent = bench.route(retry=HEDGE, concurrency_limit={"max": 4})()
    await bench.clock.advance(0.1)
    for gate in (quicker, *gates):
        if not gates[gate].done():
            gates[gate].set_result(None)
    response = await sent
    await settle()
    assert [body for body in bodies if body.end is None] == [response.body]
    assert len(bodies) == (1 if quicker == "first" else 2), "what is cancelled in time makes no answer"
    response.close()
    await nothing_left(bench)


@pytest.mark.parametrize("moment", [0.05, 0.15])
async def test_a_client_that_leaves_ends_both(moment: float) -> None:
    """Its cancellation stays one: nothing turns it into an answer, and nothing goes on."""
    bench = Bench(hang())
    sent = bench.route(retry=HEDGE, concurrency_limit={"max": 4})()
    await bench.clock.advance(moment)
    sent.cancel()
    await asyncio.gather(sent, return_exceptions=True)
    assert sent.cancelled()
    await nothing_left(bench)


async def test_a_client_that_leaves_when_the_hedge_wins() -> None:
    """In that very turn: it is still a client that left, and the answer's body is closed."""
    body = Stream(None)
    bench = Bench(hang(), after(0.05, 200, body))
    sent = bench.route(retry=HEDGE, concurrency_limit={"max": 4})()
    await bench.clock.advance(0.1)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "hedge"]
    task.add_done_callback(lambda _: sent.cancel())
    await bench.clock.advance(0.1)
    await asyncio.gather(sent, return_exceptions=True)
    assert sent.cancelled()
    assert body.end is End.DROPPED
    await nothing_left(bench)


async def test_the_task_is_as_before() -> None:
    """The cancellation of the beaten attempt leaves no mark on the task that serves the next request."""
    bench = Bench(hang(), answer(), hang(), answer())
    send = bench.route(retry=HEDGE, attempt_timeout="1s")

    async def one_connection() -> list[int]:
        statuses = []
        for _ in range(2):
            statuses.append((await inner(send)).status)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
        return statuses

    async def inner(send: Send) -> Response:
        return await send()

    assert await bench.clock.complete(one_connection()) == [200, 200]


async def test_a_timeout_and_a_win_in_one_moment() -> None:
    """The first attempt times out when the hedge answers: the client gets the answer."""
    bench = Bench(hang(), after(0.1))
    send = bench.route(
        retry={"attempts": 2, "hedge": {"after": "100ms"}, **NO_RETRY}, attempt_timeout="200ms"
    )
    response = await bench.clock.complete(send())
    assert response.status == 200
    await nothing_left(bench)


async def test_a_hedge_has_a_timeout_of_its_own() -> None:
    """Each attempt may take `attempt_timeout`: the hedge's counts from its own start."""
    bench = Bench(hang())
    retry = {"attempts": 2, "hedge": {"after": "100ms"}}
    response = await bench.clock.complete(bench.route(retry=retry, attempt_timeout="1s")())
    assert response.status == 504
    assert bench.clock.now() == pytest.approx(1001.1)
    assert hedges(bench) == {"failed": 1}
    await nothing_left(bench)


async def test_hedges_are_paid_from_the_retry_budget() -> None:
    """When it is empty there is none, and the trail says so."""
    bench = Bench(after(1))
    retry = {**HEDGE, "budget": {"ratio": "20%", "min_per_second": 0}}
    send = bench.route(retry=retry)
    for _ in range(30):
        await bench.clock.complete(send())
    assert 3 <= hedges(bench)["lost"] <= 6
    assert trail(bench) == ["retry;hedge-skipped=budget"]
    assert bench.metrics.route("all", "app").retries_skipped == {"hedge-budget": 30 - hedges(bench)["lost"]}


@pytest.mark.parametrize(
    ("method", "body", "headers"),
    [
        ("POST", b"{}", {}),
        ("GET", b"", {"accept": "text/event-stream"}),
        ("PUT", b'{"stream": true}', {}),
        ("PUT", Stream(None), {}),
        ("GET", b"", {"x_stainless_retry_count": "1"}),
    ],
)
async def test_what_is_never_hedged(method: str, body: bytes | Stream, headers: dict[str, str]) -> None:
    """Methods that are not to be repeated, event streams, bodies that stream, clients that retry."""
    bench = Bench(after(1))
    await bench.clock.complete(bench.route(retry=HEDGE)(method, body, **headers))
    assert len(bench.calls) == 1


async def test_an_upgrade_is_never_hedged() -> None:
    """A tunnel cannot be opened twice."""
    bench = Bench(after(1))
    send = bench.route(retry=HEDGE)
    sent = send()
    bench.sent[0].request.upgrade = True
    await bench.clock.complete(sent)
    assert len(bench.calls) == 1


async def test_a_listed_method_is_hedged() -> None:
    """Who lists POST vouches for it."""
    bench = Bench(after(1), after(0))
    await bench.clock.complete(bench.route(retry={**HEDGE, "methods": ["POST"]})("POST", b"{}"))
    assert len(bench.calls) == 2


async def test_an_idempotency_key_is_not_enough() -> None:
    """Two requests with one key at a time are a conflict, 409 in the draft: only retries rely on it."""
    bench = Bench(after(1))
    await bench.clock.complete(bench.route(retry={**HEDGE, "idempotency_key": "true"})("POST", b"{}"))
    assert len(bench.calls) == 1


async def test_time_in_our_own_queue_does_not_count() -> None:
    """The delay begins when the attempt leaves for the upstream, not while it waits for a permit."""
    limit = {"max": 2, "queue": "5s"}
    bench = Bench(after(1), after(1), after(0.5), after(0))
    plain = bench.route("plain", concurrency_limit=limit)
    holders = [plain(), plain()]
    await settle()
    sent = bench.route(retry=HEDGE, concurrency_limit=limit)()
    await bench.clock.advance(0.99)
    assert trail(bench) == []
    await asyncio.gather(*holders, bench.clock.advance(0.01))
    await bench.clock.complete(sent)
    assert trail(bench) == ["concurrency_limit;queued", "retry;hedge", "retry;hedge-won"]
    assert bench.calls[2:] == [pytest.approx(1001.0), pytest.approx(1001.1)]
    await nothing_left(bench)


async def test_the_deadline_leaves_time_for_it() -> None:
    """With less left than an attempt usually takes, no hedge is sent."""
    bench = Bench(after(0.5))
    send = bench.route(deadline="1s", retry={"attempts": 2, "hedge": {"after": "600ms"}, **NO_RETRY})
    for _ in range(SEEDS):
        await bench.clock.complete(send())
    bench.calls.clear()
    bench.script = [after(0.9)]
    assert (await bench.clock.complete(send())).status == 200
    assert len(bench.calls) == 1
    assert trail(bench) == ["retry;hedge-skipped=deadline"]


async def test_as_many_as_the_route_allows() -> None:
    """`max` hedges, a delay apart, and never more attempts than `attempts`."""
    for most, attempts, calls in ((2, 4, 3), (3, 3, 3), (1, 4, 2)):
        bench = Bench(after(1))
        retry = {"attempts": attempts, "hedge": {"after": "100ms", "max": most}}
        await bench.clock.complete(bench.route(retry=retry)())
        assert len(bench.calls) == calls
        assert bench.calls == [pytest.approx(1000 + number / 10) for number in range(calls)]
        await nothing_left(bench)


async def test_a_retry_may_be_hedged_too() -> None:
    """The bound is on the request: what the first attempt did not use the second may."""
    bench = Bench(answer(503), after(5), after(0))
    retry = {"attempts": 3, "hedge": {"after": "100ms"}, "backoff": {"base": "0ms"}}
    assert (await bench.clock.complete(bench.route(retry=retry)())).status == 200
    assert trail(bench) == ["retry;transient", "retry;hedge", "retry;hedge-won"]


async def test_a_hedge_that_the_breaker_refuses_is_no_answer() -> None:
    """The first attempt's own failure is what the client gets, not our refusal to hedge."""
    bench = Bench(fails_after(0.3, ConnectionReset("first")))
    send = bench.route(retry={**HEDGE, **NO_RETRY}, circuit_breaker={"consecutive": 1})
    other = bench.route("other", circuit_breaker={"consecutive": 1})
    sent = send()
    await bench.clock.advance(0.05)
    bench.script = [bench.script[0], fail(ConnectionReset())]
    assert (await other()).status == 502
    response = await bench.clock.complete(sent)
    assert response.header(b"sidecar-error") == b"upstream_reset"
    assert trail(bench, 0)[:3] == ["retry;hedge", "circuit_breaker;rejected;hedge", "retry;hedge-failed"]
    await nothing_left(bench)


async def test_a_hedge_that_ends_in_our_queue_is_no_answer() -> None:
    """Though it is the last to end: the client gets the failure of the attempt that was made."""
    limit = {"max": 2, "queue": "1s"}
    bench = Bench(hang(), fails_after(0.3, ConnectionReset("first")), hang())
    plain = bench.route("plain", concurrency_limit=limit)
    holders = [plain()]
    await settle()
    sent = bench.route(retry={**HEDGE, **NO_RETRY}, concurrency_limit=limit)()
    await settle()
    holders.append(plain())
    await bench.clock.advance(1.2)
    response = await sent
    assert response.header(b"sidecar-error") == b"upstream_reset"
    assert trail(bench, 1)[:3] == ["retry;hedge", "concurrency_limit;rejected;hedge", "retry;hedge-failed"]
    for holder in holders:
        holder.cancel()
    await asyncio.gather(*holders, return_exceptions=True)
    await nothing_left(bench)


async def test_a_hedge_goes_to_another_address() -> None:
    """It is told where the first attempt is."""
    told: list[tuple[str, ...]] = []

    async def attempt(exchange: Exchange) -> Response:
        told.append(exchange.avoid)
        exchange.address = f"10.0.0.{len(told)}"
        if len(told) == 1:
            await bench.clock.sleep(5)
        return Response(200, [], b"ok")

    bench = Bench(attempt)
    await bench.clock.complete(bench.route(retry=HEDGE)())
    assert told == [(), ("10.0.0.1",)]
    assert bench.sent[0].address == "10.0.0.2", "the answer's"


# -- at a percentile -------------------------------------------------------------------------------


async def test_a_percentile_is_learnt_first() -> None:
    """Without enough answers to go by there is no hedge; then it comes after what most of them took."""
    bench = Bench(after(0.1))
    send = bench.route(retry={"attempts": 2, "hedge": {"after": "p95"}})
    bench.script = [after(1)]
    await bench.clock.complete(send())
    assert len(bench.calls) == 1
    bench.script = [after(0.1)]
    for _ in range(SEEDS):
        await bench.clock.complete(send())
    bench.calls.clear()
    bench.script = [after(5), after(0.01)]
    await bench.clock.complete(send())
    first, second = bench.calls
    assert second - first == pytest.approx(0.1, rel=0.1)


async def test_a_percentile_hedges_the_share_that_it_names() -> None:
    """At p85 15 requests in 100: those that a hedge has beaten count as slow, and not as never seen."""
    numbers = iter((number * 7919) % 1000 / 1000 for number in range(10**6))

    async def mostly_quick(_: Exchange) -> Response:
        number = next(numbers)
        await bench.clock.sleep(10 if number > 0.9 else 0.05 + 0.01 * number)
        return Response(200, [], b"ok")

    bench = Bench(mostly_quick)
    send = bench.route(retry={"attempts": 2, "hedge": {"after": "p85"}, "budget": "off"})
    for _ in range(1000):
        await bench.clock.complete(send())
    assert sum(hedges(bench).values()) == pytest.approx(150, abs=20)


async def test_nothing_is_hedged_sooner_than_a_millisecond() -> None:
    """However quick the upstream is."""
    bench = Bench(answer())
    send = bench.route(retry={"attempts": 2, "hedge": {"after": "p95"}})
    for _ in range(SEEDS):
        await send()
    bench.calls.clear()
    bench.script = [after(1)]
    await bench.clock.complete(send())
    assert bench.calls == [1000.0, pytest.approx(1000.001)]


async def test_a_route_without_hedging_has_no_tasks_and_no_timers() -> None:
    """The layer costs nothing there."""
    bench = Bench(hang())
    sent = bench.route(retry={"attempts": 3})()
    await settle()
    assert bench.clock.armed == 0
    sent.cancel()


async def test_nothing_is_left_for_the_collector() -> None:
    """A request that was not hedged leaves no cycle of objects: the collector runs seldom."""
    bench = Bench(answer())
    bench.services = dataclasses.replace(bench.services, clock=SystemClock())
    send = bench.route(retry={"attempts": 2, "hedge": {"after": "5s"}})
    for rounds in (1, 100):  # the first warms up
        gc.collect()
        for _ in range(rounds):
            await send()
        for kept in (bench.sent, bench.seen):
            kept.clear()
    assert gc.collect() == 0

"""A breaker in shadow mode refuses nothing, and counts what an enforcing one would have refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sidecar.decisions.breaker import State
from sidecar.errors import ConnectionReset
from sidecar.exchange import Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Outcome, answer, fail, hang, stream

BREAKER: dict[str, Any] = {"consecutive": 2, "open_for": "10s", "half_open_probes": 1}
SHADOW: dict[str, Any] = {**BREAKER, "mode": "shadow"}
QUICK: dict[str, Any] = {"strategy": "fixed", "base": "100ms", "max": "100ms"}


def would_reject(bench: Bench, route: str = "all") -> int:
    return bench.metrics.route(route, "app").shadow_rejections.get("circuit_breaker", 0)


def state(bench: Bench) -> State:
    return bench.metrics.breakers["app"].breaker.state(bench.clock.now())


async def test_it_refuses_nothing() -> None:
    """With the breaker open every request reaches the upstream; each is counted, and says so in its trail."""
    bench = Bench(fail(ConnectionReset()), fail(ConnectionReset()), answer())
    send = bench.route(circuit_breaker=SHADOW)
    statuses = [(await send()).status for _ in range(5)]
    assert statuses == [502, 502, 200, 200, 200]
    assert state(bench) is State.OPEN
    assert would_reject(bench) == 3
    assert bench.metrics.route("all", "app").breaker_rejections == 0
    assert bench.sent[-1].note_list == [("circuit_breaker", "would-reject")]
    assert bench.sent[-1].breaker == "open"


async def test_what_it_would_not_have_seen_teaches_nothing() -> None:
    """Outcomes of attempts that an enforcing breaker had refused neither close it nor keep it open."""
    bench = Bench(fail(ConnectionReset()), fail(ConnectionReset()), answer())
    send = bench.route(circuit_breaker=SHADOW)
    for _ in range(4):
        await send()
    assert state(bench) is State.OPEN
    await bench.clock.advance(10)
    await send()
    assert state(bench) is State.CLOSED
    assert would_reject(bench) == 2


async def test_only_probes_decide_when_it_is_half_open() -> None:
    """While a probe is out, others pass, are counted, and say nothing of the upstream."""
    bench = Bench(fail(ConnectionReset()), fail(ConnectionReset()), hang(), fail(ConnectionReset()), answer())
    send = bench.route(circuit_breaker=SHADOW)
    for _ in range(2):
        await send()
    await bench.clock.advance(10)
    probe = send()
    await settle()
    assert [(await send()).status, (await send()).status] == [502, 200]
    assert state(bench) is State.HALF_OPEN
    assert would_reject(bench) == 2
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)


async def test_a_body_of_one_it_would_have_refused_teaches_nothing_either() -> None:
    """A permit that was never given does not end with a body."""
    body = Stream(None)
    bench = Bench(fail(ConnectionReset()), fail(ConnectionReset()), stream(body))
    send = bench.route(circuit_breaker=SHADOW)
    for _ in range(3):
        await send()
    await bench.clock.advance(10)
    body.fail(ConnectionReset())
    assert state(bench) is State.HALF_OPEN


async def test_a_request_is_refused_once() -> None:
    """An enforcing breaker ends a request, so the repetitions of one it would have refused are no attempts.

    They are not counted, and neither do they probe.
    """
    bench = Bench(fail(ConnectionReset()))
    opener = bench.route("opener", circuit_breaker=SHADOW)
    for _ in range(2):
        await opener()
    send = bench.route(
        circuit_breaker=SHADOW, retry={"attempts": 3, "backoff": {**QUICK, "base": "6s", "max": "6s"}}
    )
    response = await bench.clock.complete(send())
    assert (response.status, bench.sent[-1].attempts) == (502, 3)
    assert would_reject(bench) == 1
    assert state(bench) is State.HALF_OPEN  # nobody has probed: it would have been open for longer


def failing_by_turns(bench: Bench, *, period: float, bad: float) -> Outcome:
    """An upstream that fails for `bad` seconds of every `period`; it takes 50 ms either way."""

    async def outcome(_: Exchange) -> Response:
        failing = bench.clock.now() % period < bad
        await bench.clock.sleep(0.05)
        if failing:
            raise ConnectionReset
        return Response(200, [], b"ok")

    return outcome


@pytest.mark.parametrize("others", [{}, {"retry": {"attempts": 2, "backoff": QUICK}}])
async def test_the_share_is_that_of_an_enforcing_breaker(others: dict[str, Any]) -> None:
    """A shadow counts the 30 % (± 3 %) that an enforcing breaker refuses in its place; it refuses none."""
    arrivals = 6000
    counted = {}
    for mode in ("enforce", "shadow"):
        bench = Bench()
        bench.script = [failing_by_turns(bench, period=66.0, bad=16.0)]
        send = bench.route(
            circuit_breaker={"consecutive": 5, "open_for": "5s", "open_max": "5s", "mode": mode},
            **others,
        )
        sent = []
        for _ in range(arrivals):
            sent.append(send())
            await bench.clock.advance(0.1)
        await bench.clock.advance(1.0)
        refused = sum(task.result().status == 503 for task in sent)
        counted[mode] = (refused, would_reject(bench), bench.metrics.breakers["app"].entered)
    refused, none, transitions = counted["enforce"]
    assert none == 0
    assert refused / arrivals == pytest.approx(0.30, abs=0.03)
    assert counted["shadow"][0] == 0
    # What is not refused is repeated: that takes from the retry budget what enforcing had left there.
    assert counted["shadow"][1] / arrivals == pytest.approx(refused / arrivals, abs=0.01)
    if not others:
        assert counted["shadow"][1:] == (refused, transitions)

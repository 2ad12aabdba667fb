"""A shadow breaker beside an enforcing one: whatever comes, it counts what the other refuses."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.decisions.breaker import Breaker
from sidecar.errors import ConnectionReset
from sidecar.exchange import Exchange, Response
from tests.support.clock import settle
from tests.support.script import Bench

OUTCOMES = {"ok": 200, "transient": 503, "rate_limited": 429, "client": 404}
SETTINGS = st.fixed_dictionaries(
    {
        "failure_ratio": st.sampled_from(["off", "50%", "100%"]),
        "minimum_calls": st.integers(1, 5),
        "window": st.just("10s"),
        "consecutive": st.integers(1, 4),
        "slow_call": st.sampled_from(["off", {"ratio": "50%", "over": "1s"}]),
        "open_for": st.just("2s"),
        "open_max": st.just("8s"),
        "half_open_probes": st.integers(1, 3),
    }
)


class Side:
    """A pipeline with its breaker, and the requests that wait in its upstream."""

    def __init__(self, breaker: dict[str, Any], mode: str) -> None:
        self.bench = Bench(self.outcome)
        self.send = self.bench.route(circuit_breaker={**breaker, "mode": mode})
        self.cells = self.bench.metrics.route("all", "app")
        self.waiting: dict[int, asyncio.Future[str]] = {}
        self.sent: dict[int, asyncio.Task[Response]] = {}

    async def outcome(self, exchange: Exchange) -> Response:
        number = int(exchange.request.target[1:])
        self.waiting[number] = asyncio.get_running_loop().create_future()
        try:
            how = await self.waiting[number]
        finally:
            del self.waiting[number]
        if how == "reset":
            raise ConnectionReset
        return Response(OUTCOMES[how], [], b"")

    @property
    def breaker(self) -> Breaker:
        return self.bench.metrics.breakers["app"].breaker


class BesideAnEnforcingOne(RuleBasedStateMachine):
    @initialize(breaker=SETTINGS)
    def build(self, breaker: dict[str, Any]) -> None:
        self.runner = asyncio.Runner()
        self.runner.run(self.start(breaker))
        self.number = 0
        self.refused: set[int] = set()

    async def start(self, breaker: dict[str, Any]) -> None:
        self.sides = enforcing, shadow = Side(breaker, "enforce"), Side(breaker, "shadow")
        self.enforcing, self.shadow = enforcing, shadow

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.end_all())
            self.runner.close()

    async def end_all(self) -> None:
        tasks = [task for side in self.sides for task in side.sent.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what may happen -----------------------------------------------------------------------

    @rule(quarters=st.one_of(st.integers(1, 8), st.integers(1, 40)))
    def wait(self, quarters: int) -> None:
        for side in self.sides:
            self.runner.run(side.bench.clock.advance(quarters / 4))

    @rule(count=st.integers(1, 4))
    def ask(self, count: int) -> None:
        for _ in range(count):
            self.number += 1
            for side in self.sides:
                self.runner.run(self.request(side, self.number))
            if self.number not in self.enforcing.waiting:
                self.refused.add(self.number)

    async def request(self, side: Side, number: int) -> None:
        side.sent[number] = side.send(target=b"/%d" % number)
        await settle()

    @precondition(lambda self: self.shadow.waiting)
    @rule(data=st.data(), how=st.sampled_from([*OUTCOMES, "reset"]))
    def answer(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.shadow.waiting)))
        self.runner.run(self.come(number, how))

    async def come(self, number: int, how: str) -> None:
        for side in self.sides:
            if number in side.waiting:
                side.waiting[number].set_result(how)
                await side.sent[number]

    @precondition(lambda self: self.shadow.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.shadow.waiting)))
        self.runner.run(self.cancel(number))

    async def cancel(self, number: int) -> None:
        for side in self.sides:
            side.sent[number].cancel()
            await asyncio.gather(side.sent[number], return_exceptions=True)

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def it_counts_what_the_other_refuses(self) -> None:
        would = self.shadow.cells.shadow_rejections.get("circuit_breaker", 0)
        assert would == self.enforcing.cells.breaker_rejections == len(self.refused)
        assert self.enforcing.cells.shadow_rejections == {}

    @invariant()
    def it_refuses_nothing(self) -> None:
        assert self.shadow.cells.breaker_rejections == 0
        assert len(self.shadow.bench.calls) == self.number

    @invariant()
    def they_are_in_the_same_state(self) -> None:
        now = self.enforcing.bench.clock.now()
        assert self.shadow.breaker.state(now) is self.enforcing.breaker.state(now)
        assert self.shadow.breaker.transitions == self.enforcing.breaker.transitions
        assert self.shadow.breaker.probing == self.enforcing.breaker.probing


BesideAnEnforcingOne.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBesideAnEnforcingOne = BesideAnEnforcingOne.TestCase

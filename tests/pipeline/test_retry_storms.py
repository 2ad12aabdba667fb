"""What retries and hedges come to in the sum: no outage is multiplied, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import ConnectFailed, ConnectionReset, UpstreamError
from sidecar.exchange import Exchange, Response, Stream
from tests.support.clock import settle
from tests.support.script import Bench, Send, answer, fail

PER_SECOND = 200
MINUTE = 60
BUDGET = {"ratio": "20%", "min_per_second": 1}


async def storm(
    bench: Bench, send: Send, seconds: int = MINUTE, **headers: str
) -> list[asyncio.Task[Response]]:
    """200 requests a second, in tens, whatever becomes of them (an open model)."""
    sent = []
    for _ in range(PER_SECOND * seconds // 10):
        sent += [send(**headers) for _ in range(10)]
        await bench.clock.advance(10 / PER_SECOND)
    await bench.clock.advance(MINUTE)
    return sent


@pytest.mark.parametrize("outcome", [answer(503), fail(ConnectionReset())], ids=["503", "reset"])
async def test_an_outage_is_not_multiplied(outcome: Any) -> None:
    """An upstream that fails always sees 1.1 to 1.25 times the requests, though each may have 3 attempts."""
    bench = Bench(outcome)
    sent = await storm(bench, bench.route(retry={"attempts": 3, "budget": BUDGET}))
    assert all(task.done() for task in sent)
    assert 1.1 <= len(bench.calls) / len(sent) <= 1.25


async def test_with_the_breaker_an_outage_is_kept_from_the_upstream() -> None:
    """It sees at most a fifth of the requests, probes and retries included."""
    bench = Bench(answer(503))
    send = bench.route(retry={"attempts": 3, "budget": BUDGET}, circuit_breaker={})
    sent = await storm(bench, send)
    assert len(bench.calls) / len(sent) <= 0.2


async def test_clients_that_retry_are_not_multiplied() -> None:
    """Of requests that say that they are repetitions the upstream sees each once."""
    bench = Bench(answer(503))
    send = bench.route(retry={"attempts": 3, "budget": BUDGET})
    sent = await storm(bench, send, x_stainless_retry_count="1")
    assert len(bench.calls) == len(sent)


async def test_a_slow_upstream_is_not_doubled() -> None:
    """When all requests become slow at once, hedges and retries together stay within the budget."""

    async def slow(_: Exchange) -> Response:
        await bench.clock.sleep(2)
        return Response(503, [], b"")

    bench = Bench(slow)
    retry = {"attempts": 3, "budget": BUDGET, "hedge": {"after": "100ms"}}
    sent = await storm(bench, bench.route(retry=retry), seconds=15)
    assert 1.1 <= len(bench.calls) / len(sent) <= 1.25


# -- anything at all -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """What one attempt comes to."""

    seconds: float
    status: int
    """0: a reset; 1: no connection."""
    streams: bool


@dataclass
class World:
    """A route with everything, and clients that come and go."""

    attempts: Sequence[Attempt]
    bodies: list[Stream] = field(default_factory=list)

    async def upstream(self, exchange: Exchange) -> Response:
        attempt = self.attempts[(len(self.bench.calls) - 1) % len(self.attempts)]
        await self.bench.clock.sleep(attempt.seconds)
        if attempt.status < 100:
            error: UpstreamError = ConnectionReset() if attempt.status == 0 else ConnectFailed()
            raise error
        if not attempt.streams:
            return Response(attempt.status, [], b"ok")
        self.bodies.append(Stream(None))
        return Response(attempt.status, [], self.bodies[-1])

    async def run(
        self, requests: Sequence[tuple[float, float | None]], policies: dict[str, Any], most: int
    ) -> None:
        """`requests`: seconds before each, and after which its client leaves."""
        bench = self.bench = Bench(self.upstream)
        send = bench.route(**policies)
        clients = [asyncio.ensure_future(self.client(send, *each)) for each in requests]
        await bench.clock.advance(600)
        responses = await asyncio.gather(*clients)
        await settle()

        assert [task for task in asyncio.all_tasks() if task.get_name() == "hedge"] == []
        assert sum(exchange.attempts for exchange in bench.sent) == len(bench.calls)
        assert all(exchange.attempts <= most for exchange in bench.sent)
        handed = [response.body for response in responses if response is not None]
        for body in self.bodies:
            assert (body.end is None) == any(body is one for one in handed), "open bodies are clients' bodies"
            body.finish()
        assert bench.clock.armed == 0
        assert all(limit.in_flight == 0 for limit in bench.metrics.limits.values())
        assert all(cells.breaker.probing == 0 for cells in bench.metrics.breakers.values())
        extra = len(bench.calls) - len(bench.sent)
        assert extra <= 0.5 * len(bench.sent) + 2 * 2, "a share, and the reserve of two windows"

    async def client(self, send: Send, start: float, leaves: float | None) -> Response | None:
        await self.bench.clock.sleep(start)
        sent = send()
        if leaves is None:
            return await sent
        await self.bench.clock.sleep(leaves)
        sent.cancel()
        (answered,) = await asyncio.gather(sent, return_exceptions=True)
        return answered if isinstance(answered, Response) else None


STEPS = st.integers(0, 12).map(lambda eighths: eighths / 8)
ATTEMPTS = st.builds(
    Attempt, seconds=STEPS, status=st.sampled_from([200, 200, 404, 429, 503, 0, 1]), streams=st.booleans()
)
REQUESTS = st.tuples(STEPS, st.none() | STEPS)


@settings(max_examples=60, deadline=None)
@given(
    attempts=st.lists(ATTEMPTS, min_size=1, max_size=6),
    requests=st.lists(REQUESTS, min_size=1, max_size=8),
    most=st.integers(2, 4),
    hedges=st.integers(1, 3),
    limit=st.integers(1, 5),
    timed=st.booleans(),
)
def test_nothing_is_left_behind(
    attempts: list[Attempt],
    requests: list[tuple[float, float | None]],
    most: int,
    hedges: int,
    limit: int,
    timed: bool,
) -> None:
    """Whatever attempts come to and whenever clients leave: each body, permit, probe, timer and task is given
    back, attempts are counted once, and retries with hedges stay within the budget.
    """
    policies: dict[str, Any] = {
        "retry": {
            "attempts": most,
            "hedge": {"after": "250ms", "max": hedges},
            "backoff": {"strategy": "fixed", "base": "125ms"},
            "budget": {"ratio": "50%", "min_per_second": 0.2},
        },
        "concurrency_limit": {"max": limit, "queue": "1s"},
        "circuit_breaker": {"consecutive": 3, "open_for": "1s"},
    }
    if timed:
        policies |= {"attempt_timeout": "1s", "deadline": "3s"}
    asyncio.run(World(attempts).run(requests, policies, most))

"""A minute's quota of 60, 300 batch requests and an interactive one every 30 s, beside many providers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.support.quotas import FixedWindow, Provider, Quota, SlidingLog, TokenBucket
from tests.support.script import Bench

BATCH = 300
EVERY = 30.0
START = 1000.0
RETRY = {"attempts": 3, "backoff": {"base": "200ms", "max": "2s"}}
QUOTAS: dict[str, Callable[[], Quota]] = {
    "windows from the start": lambda: FixedWindow(60, 60.0, offset=START),
    "windows from elsewhere": lambda: FixedWindow(60, 60.0, offset=START + 27),
    "bucket": lambda: TokenBucket(60, 60.0),
    "sliding": lambda: SlidingLog(60, 60.0),
}


@dataclass
class Outcome:
    minutes: list[int]
    """Requests that the provider admitted, in each full minute in which batch requests waited."""
    refused: int
    statuses: set[int]
    """What clients got."""
    p95: float
    """Seconds that interactive requests took."""


async def run(quota: Quota, style: str, limit: dict[str, object] | None = None, /, **pace: object) -> Outcome:
    bench = Bench()
    provider = Provider(bench.clock, quota, style)
    bench.script = [provider]
    send = bench.route(pace={"batch_patience": "10m", **pace}, retry=RETRY, concurrency_limit=limit)
    batch = [send(priority="u=7") for _ in range(BATCH)]
    seconds: list[float] = []
    statuses: set[int] = set()

    async def interactive() -> None:
        began = bench.clock.now()
        statuses.add((await send()).status)
        seconds.append(bench.clock.now() - began)

    others: list[asyncio.Task[None]] = []
    while not all(request.done() for request in batch):
        others.append(asyncio.ensure_future(interactive()))
        await bench.clock.advance(EVERY)
    await bench.clock.complete(asyncio.gather(*others))
    statuses.update(request.result().status for request in batch)
    after = [at - START for at in provider.admitted]
    full = int(max(after) // 60)
    minutes = [sum(60 * minute <= at < 60 * minute + 60 for at in after) for minute in range(full)]
    return Outcome(minutes, len(provider.refused), statuses, sorted(seconds)[int(len(seconds) * 0.95)])


async def test_the_whole_quota_is_used_and_nobody_is_refused() -> None:
    """Of 60 in each minute's window all 60 are used, and interactive requests hardly wait."""
    outcome = await run(FixedWindow(60, 60.0, offset=START), "openai")
    assert outcome.minutes == [60, 60, 60, 60, 60]
    assert (outcome.refused, outcome.statuses) == (0, {200})
    assert outcome.p95 == pytest.approx(0.075, abs=0.001)  # 50 ms of it are the provider's


@pytest.mark.parametrize("style", ["openai", "draft10", "draft7", "github"])
@pytest.mark.parametrize("quota", QUOTAS)
async def test_a_stated_quota_is_used_up_and_not_more(quota: str, style: str) -> None:
    """However a provider counts and says so, at least 95 % is used, and no client sees a 429."""
    outcome = await run(QUOTAS[quota](), style)
    assert min(outcome.minutes) >= 57
    assert outcome.statuses == {200}
    assert outcome.p95 < 2.0
    # Of a sliding window whose reset is rounded to the second nobody can know when the next one leaves.
    assert outcome.refused == 0 or (quota, style) == ("sliding", "github")


@pytest.mark.parametrize("style", ["retry_after", "none"])
@pytest.mark.parametrize("quota", QUOTAS)
async def test_a_quota_that_nobody_states_is_found(quota: str, style: str) -> None:
    """From refusals alone, begun at the right rate: 95 % is used, and what is refused is repeated in time."""
    outcome = await run(QUOTAS[quota](), style, rate="60/m")
    assert min(outcome.minutes) >= 57
    assert outcome.statuses == {200}
    assert outcome.p95 < 2.0
    assert outcome.refused <= 5


@pytest.mark.parametrize("quota", QUOTAS)
async def test_a_rate_that_is_ten_times_too_high_is_left_behind(quota: str) -> None:
    """Begun at 600 a minute, where 60 are allowed and no answer says so, the rate is right in two minutes."""
    outcome = await run(QUOTAS[quota](), "retry_after", rate="600/m")
    assert outcome.refused <= 20
    assert min(outcome.minutes[2:]) >= 55


async def test_batch_that_waits_leaves_permits_to_others() -> None:
    """Who waits for a turn holds a permit; of these the limit keeps some for the class above."""
    limit: dict[str, object] = {"max": 10, "queue": "10m"}
    outcome = await run(FixedWindow(60, 60.0, offset=START), "openai", limit)
    assert (min(outcome.minutes), outcome.statuses) == (60, {200})
    assert outcome.p95 < 0.2

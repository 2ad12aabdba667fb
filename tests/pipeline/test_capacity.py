"""Limits in front of a server that loses half of its capacity and gets it back, simulated in virtual time.

The server works on `WORKERS` requests at a time, a tenth of a second each on average, and goes on with what
its client has given up, as most servers do. Clients want their answer within `PATIENCE`.
docs/limits.md has the table of a real run.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.support.simulation import Phase, simulate

WORKERS = 16
SERVICE = 0.1
PATIENCE = 2.0
SECONDS = 15.0
RATE = WORKERS / SERVICE
ADAPTIVE = {"adaptive": {"initial": 8, "min": 2, "max": 64}, "queue": "1s"}


def even(chance: random.Random) -> float:
    return chance.uniform(0.5, 1.5) * SERVICE


def uneven(chance: random.Random) -> float:
    """Memoryless: a third takes longer than the average, some of them four times as long."""
    return chance.expovariate(1 / SERVICE)


def halved(load: float, kind: str) -> list[Phase]:
    """Full capacity, half of it, full capacity. Below capacity the clients follow it; above they do not."""
    rate = load * RATE
    fewer = rate if load > 1 else rate / 2
    half = (
        Phase(SECONDS, fewer, WORKERS // 2)
        if kind == "workers"
        else Phase(SECONDS, fewer, WORKERS, slowness=2)
    )
    return [Phase(SECONDS, rate, WORKERS), half, Phase(SECONDS, rate, WORKERS)]


async def goodput(phases: list[Phase], limit: dict[str, Any] | None, times: Any = even) -> list[float]:
    """Per phase, the share of the answers in time that a perfect limit would have given."""
    settings: dict[str, Any] = {"deadline": "2s"}
    if limit is not None:
        settings["concurrency_limit"] = limit
    await simulate(phases, times, PATIENCE, settings)
    return [phase.good / phase.ideal(SERVICE) for phase in phases]


@pytest.mark.slow
@pytest.mark.parametrize("load", [1.2, 0.9], ids=["overload", "below capacity"])
@pytest.mark.parametrize("kind", ["workers", "slower"])
@pytest.mark.parametrize("times", [even, uneven])
async def test_an_adaptive_limit_gives_nine_tenths_of_the_ideal(load: float, kind: str, times: Any) -> None:
    """In each phase, whether half of the workers are lost or all take twice as long; and p99 is bounded: by
    the second in the queue, and what the work takes with a short queue at the server.
    """
    phases = halved(load, kind)
    assert min(await goodput(phases, ADAPTIVE, times)) >= 0.9
    for phase in phases:
        longest = 15 if times is uneven else 5
        assert phase.quantile(0.99) <= min(PATIENCE, 1.0 + longest * SERVICE * phase.slowness)


@pytest.mark.slow
async def test_without_a_limit_overload_ends_all_work_in_time() -> None:
    """The server is busy with what nobody waits for any more, and stays so when its capacity is back."""
    assert max((await goodput(halved(1.2, "workers"), None))[1:]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("most", "least_share", "most_share"),
    [(8, 0.4, 0.6), (200, 0.0, 0.05)],
    ids=["too low", "too high"],
)
async def test_a_fixed_limit_must_be_the_right_one(most: int, least_share: float, most_share: float) -> None:
    """Half of what the server can do is half of the goodput; much more than that is none."""
    shares = await goodput(halved(1.2, "workers"), {"max": most, "queue": "1s"})
    assert least_share <= shares[2] <= most_share


@pytest.mark.slow
@pytest.mark.parametrize("rate", [20, 120])
async def test_an_app_that_waits_for_others_needs_no_number(rate: float) -> None:
    """It works on all at once, 1.3 ms when it has what it needs and 200 ms when it must ask, and stands still
    for two seconds now and then: at 20 a second the adaptive limit answers as many as one that is right, give
    or take a few; at 120, where that is too low, more.
    """

    def times(chance: random.Random) -> float:
        return chance.uniform(0.15, 0.25) if chance.random() < 0.9 else 0.0013

    answered = []
    for limit in (ADAPTIVE, {"max": 16, "queue": "1s"}):
        phases = [Phase(seconds, rate, workers) for seconds, workers in ((11, 1000), (2, 0)) * 2]
        await simulate(phases, times, 5.0, {"concurrency_limit": limit})
        answered.append(sum(phase.good for phase in phases) / sum(phase.arrived for phase in phases))
    adaptive, fixed = answered
    assert adaptive > fixed - 0.03
    if rate > 100:
        assert adaptive > fixed + 0.1

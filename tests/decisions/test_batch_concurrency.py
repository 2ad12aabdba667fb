"""How many lines of a batch may be in flight."""

from __future__ import annotations

import random

import pytest

from sidecar.decisions.batch_concurrency import Courtesy, EagerLimit, Machine

EASY = Machine(cpu=10.0, cpu_target=85.0, resident=1, memory_target=2, lag=0.0)
HOT = Machine(cpu=95.0, cpu_target=85.0, resident=1, memory_target=2, lag=0.0)


def flight(limit: EagerLimit, workers: int) -> None:
    """As many requests as the limit allows, all answered: each takes 0.1 s where a worker is free."""
    count = limit.limit
    for _ in range(count):
        limit.take()
    for _ in range(count):
        limit.sample(0.1 * max(1.0, count / workers))
    for _ in range(count):
        limit.release()


@pytest.mark.parametrize(("workers", "least", "most"), [(12, 10, 20), (24, 20, 40), (200, 50, 50)])
def test_it_doubles_until_answers_take_longer(workers: int, least: int, most: int) -> None:
    """Ten flights find what small steps would need fifty for; what the server cannot bear is taken back."""
    limit = EagerLimit(10, 1, 50)
    for _ in range(10):
        flight(limit, workers)
    assert least <= limit.limit <= most


def test_a_failure_ends_the_haste() -> None:
    """After one failure of overload the limit is lower, and grows by small steps."""
    limit = EagerLimit(10, 1, 50)
    limit.drop(1.0, 1.1)
    for _ in range(4):
        flight(limit, 100)
    assert 9 <= limit.limit <= 13


def test_what_is_not_used_is_no_reason_for_more() -> None:
    """With one in flight at a time nothing is doubled."""
    limit = EagerLimit(10, 1, 50)
    for _ in range(500):
        limit.take()
        limit.sample(0.1)
        limit.release()
    assert limit.limit == 10


def test_interactive_requests_that_suffer_are_given_way() -> None:
    """Slower than alone by more than a tenth, batches give way at once; alone again they come back slowly."""
    courtesy = Courtesy(50)
    for _ in range(10):
        courtesy.step({"r": (10, 1.0)}, EASY, busy=False)
    courtesy.step({"r": (10, 1.5)}, EASY, busy=True)
    assert courtesy.allowed == 25
    assert courtesy.pressure == pytest.approx(1.5, rel=0.01)
    for _ in range(8):
        courtesy.step({"r": (10, 1.0)}, EASY, busy=True)
    assert 25 < courtesy.allowed < 45


@pytest.mark.parametrize("count", [3, 20, 100])
def test_times_that_vary_by_themselves_are_no_reason(count: int) -> None:
    """Where interactive requests take between 50 and 150 ms with a batch and without, it gives no way."""
    chance = random.Random(4)

    def seen() -> dict[str, tuple[int, float]]:
        return {"r": (count, sum(chance.uniform(0.05, 0.15) for _ in range(count)))}

    courtesy = Courtesy(50)
    for _ in range(20):
        courtesy.step(seen(), EASY, busy=False)
    allowed = []
    for _ in range(300):
        courtesy.step(seen(), EASY, busy=True)
        allowed.append(courtesy.allowed)
    assert sum(allowed) / len(allowed) > 40


@pytest.mark.parametrize("count", [5, 20, 100])
def test_what_takes_a_fifth_longer_is_seen_through_the_noise(count: int) -> None:
    """Requests that take 20 % longer while more than ten lines are in flight leave it about that many."""
    chance = random.Random(4)
    courtesy = Courtesy(50)

    def seen() -> dict[str, tuple[int, float]]:
        longer = 1.2 if courtesy.allowed > 10 else 1.0
        return {"r": (count, longer * sum(chance.uniform(0.05, 0.15) for _ in range(count)))}

    for _ in range(20):
        courtesy.step({"r": (count, count * 0.1)}, EASY, busy=False)
    allowed = []
    for _ in range(100):
        courtesy.step(seen(), EASY, busy=True)
        allowed.append(courtesy.allowed)
    settled = allowed[20:]
    assert sum(settled) / len(settled) < 25


def test_a_machine_that_others_keep_busy_lets_batches_go_on_slowly() -> None:
    """With the CPU above its target the batch gives way step by step, and a few lines stay in flight."""
    courtesy = Courtesy(50)
    for _ in range(60):
        courtesy.step({}, HOT, busy=True)
    assert courtesy.allowed == 4

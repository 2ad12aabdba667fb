from __future__ import annotations

import math

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from sidecar.decisions.retry_budget import EMPTY, UNLIMITED, Budget, RetryBudget


def drain(budget: Budget, now: float) -> int:
    """How many retries can be paid at once."""
    paid = 0
    while paid < 10_000 and budget.try_withdraw(now):
        paid += 1
    return paid


def test_a_reserve_is_there_before_any_traffic() -> None:
    """`min_per_second` × window retries are in stock from the start."""
    assert drain(RetryBudget(0.2, 1.0), 100.0) == 10


@pytest.mark.parametrize(
    ("ratio", "requests", "retries"),
    [(0.2, 100, 20), (0.2, 4, 0), (0.2, 5, 1), (0.29, 100, 29), (0.07, 100, 7), (1.0, 3, 3), (0.0, 100, 0)],
)
def test_requests_pay_for_a_share_of_retries(ratio: float, requests: int, retries: int) -> None:
    """Without a reserve exactly `ratio` of the requests may be repeated."""
    budget = RetryBudget(ratio, 0.0)
    for _ in range(requests):
        budget.deposit(100.0)
    assert drain(budget, 100.0) == retries


def test_deposits_are_forgotten_after_the_window() -> None:
    """Traffic of ten seconds ago pays for nothing."""
    budget = RetryBudget(0.5, 0.0)
    for _ in range(10):
        budget.deposit(100.0)
    assert budget.available(109.9) == 5.0
    assert budget.available(110.0) == 0.0


def test_the_reserve_comes_back() -> None:
    """Once the withdrawals are out of the window, the stock is full again."""
    budget = RetryBudget(0.2, 1.0)
    drain(budget, 100.0)
    assert budget.available(110.9) == 0.0
    assert budget.available(111.0) == 10.0


def test_a_refused_withdrawal_costs_nothing() -> None:
    """Asking in vain does not put the budget into debt."""
    budget = RetryBudget(1.0, 0.0)
    for _ in range(50):
        assert not budget.try_withdraw(100.0)
    budget.deposit(100.0)
    assert budget.try_withdraw(100.0)


def test_an_outage_is_multiplied_by_the_ratio_only() -> None:
    """At 100 requests a second that all fail, a minute of retries adds 20 % and the reserve."""
    budget = RetryBudget(0.2, 1.0)
    retries = 0
    for request in range(6000):
        now = 100.0 + request / 100
        budget.deposit(now)
        for _ in range(2):
            retries += budget.try_withdraw(now)
    assert 1000 <= retries <= 6000 * 0.2 + 60


def test_available_never_shows_a_debt() -> None:
    """When deposits are forgotten before what they paid for, nothing is available: not less."""
    budget = RetryBudget(1.0, 0.0)
    for _ in range(10):
        budget.deposit(100.0)
    drain(budget, 109.0)
    assert budget.available(110.5) == 0.0


def test_unlimited_pays_for_everything() -> None:
    """The budget of a route whose budget is off."""
    UNLIMITED.deposit(1.0)
    assert drain(UNLIMITED, 1.0) == 10_000
    assert UNLIMITED.available(1.0) == math.inf


def test_empty_pays_for_nothing() -> None:
    """The budget that allows no retry, whatever the traffic."""
    EMPTY.deposit(1.0)
    assert drain(EMPTY, 1.0) == 0
    assert EMPTY.available(1.0) == 0.0


@pytest.mark.parametrize(
    ("ratio", "least", "window"), [(-0.1, 1.0, 10.0), (0.1, -1.0, 10.0), (0.1, 1.0, 0.5)]
)
def test_nonsense_is_refused(ratio: float, least: float, window: float) -> None:
    """A negative rate or a window under a second is a ValueError."""
    with pytest.raises(ValueError, match="retry budget"):
        RetryBudget(ratio, least, window)


class Ledger(RuleBasedStateMachine):
    """Any traffic, beside a list of all that ever happened."""

    @initialize(
        ratio=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
        least=st.sampled_from([0.0, 0.2, 1.0]),
        window=st.sampled_from([1.0, 2.0, 10.0]),
    )
    def build(self, ratio: float, least: float, window: float) -> None:
        self.ratio, self.reserve, self.window = ratio, least * window, window
        self.budget = RetryBudget(ratio, least, window)
        self.now = 1000.0
        self.requests: list[float] = []
        self.retries: list[float] = []

    @rule(eighths=st.integers(0, 100))
    def wait(self, eighths: int) -> None:
        self.now += eighths / 8

    @rule(many=st.integers(1, 30))
    def requests_come(self, many: int) -> None:
        for _ in range(many):
            self.budget.deposit(self.now)
            self.requests.append(self.now)

    @rule(many=st.integers(1, 10))
    def retries_or_hedges_are_tried(self, many: int) -> None:
        for _ in range(many):
            expected = self.balance() >= 1 - 1e-6
            available = self.budget.available(self.now)
            assert available == pytest.approx(max(self.balance(), 0.0), abs=1e-6)
            paid = self.budget.try_withdraw(self.now)
            assert paid == expected
            if paid:
                self.retries.append(self.now)
                self.bound_holds()

    def balance(self) -> float:
        """The same from the list: whole seconds, and one more of them for what was paid out."""
        second, window = int(self.now), int(self.window)
        paid_in = sum(int(at) > second - window for at in self.requests)
        paid_out = sum(int(at) > second - window - 1 for at in self.retries)
        return self.reserve + self.ratio * paid_in - paid_out

    def bound_holds(self) -> None:
        """In the exact window that ends now, retries are no more than requests and reserve pay for."""
        since = self.now - self.window
        retries = sum(at > since for at in self.retries)
        requests = sum(at > since for at in self.requests)
        assert retries <= self.ratio * requests + self.reserve + 1e-6


TestLedger = Ledger.TestCase

"""What generations share, and what goes with the last one that uses it."""

from __future__ import annotations

from sidecar.config.schema import CircuitBreaker, Retry
from sidecar.state import State, Use
from sidecar.telemetry.metrics import Metrics
from tests.support.clock import ManualClock


class Place:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.state = State(self.metrics, self.clock)

    def begin(self, suffix: str = "", url: str = "http://a") -> Use:
        use = Use(suffix, {"maps": (url, None)})
        self.state.begin(use)
        return use


def test_the_same_settings_keep_what_was_learnt() -> None:
    """A reload that changes neither the upstream nor the policy keeps the breaker, open as it is."""
    place = Place()
    place.begin()
    _, before, _ = place.state.breaker("maps", "geocode", CircuitBreaker(consecutive=3))
    after_use = place.begin()
    _, after, _ = place.state.breaker("maps", "other", CircuitBreaker(consecutive=3))
    place.state.keep([after_use])
    assert after is before


def test_other_settings_or_another_server_begin_afresh() -> None:
    """Its name alone does not make an upstream the same; metrics go on under the old name."""
    place = Place()
    first = place.begin()
    _, before, _ = place.state.breaker("maps", "geocode", CircuitBreaker(consecutive=3))
    place.state.keep([first])
    second = place.begin()
    label, other, cells = place.state.breaker("maps", "geocode", CircuitBreaker(consecutive=4))
    place.state.keep([second])
    assert other is not before
    assert (label, cells.breaker) == ("maps", other)
    place.begin(url="http://b")
    _, elsewhere, _ = place.state.breaker("maps", "geocode", CircuitBreaker(consecutive=4))
    assert elsewhere is not other


def test_what_no_generation_uses_is_dropped() -> None:
    """State and metrics: fifty reloads leave what one has."""
    place = Place()
    for number in range(1, 51):
        use = place.begin()
        place.state.breaker("maps", "geocode", CircuitBreaker(consecutive=number))
        place.state.budget("maps", "geocode", Retry())
        place.state.keep([use])
    assert {name: len(table) for name, table in place.state._tables.items() if table} == {
        "breaker": 1,
        "budget": 1,
    }
    assert list(place.metrics.breakers) == ["maps"]
    gone = place.begin()
    place.state.keep([gone])
    assert not place.metrics.breakers
    assert not place.metrics.budgets


def test_a_candidates_own_are_told_from_those_in_force() -> None:
    """What both have is shown once; what only the candidate has carries its number, until it goes."""
    place = Place()
    force = place.begin()
    place.state.breaker("maps", "geocode", CircuitBreaker(consecutive=3))
    place.state.keep([force])
    candidate = place.begin("@2")
    same, _, _ = place.state.breaker("maps", "geocode", CircuitBreaker(consecutive=3))
    other, _, _ = place.state.breaker("maps", "fresh", CircuitBreaker(consecutive=9, scope="route"))
    place.state.keep([force, candidate])
    assert (same, other) == ("maps", "maps/fresh@2")
    place.state.keep([force])
    assert list(place.metrics.breakers) == ["maps"]

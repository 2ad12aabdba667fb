"""The cells of the request path."""

from __future__ import annotations

import timeit

import pytest

from sidecar.decisions.breaker import Breaker, State
from sidecar.decisions.buckets import STANDARD
from sidecar.decisions.verdict import Verdict
from sidecar.telemetry.metrics import MOST_REASONS, Metrics, RouteCells


def test_a_request_is_counted_by_method_and_status() -> None:
    """Each pair of method and status has its own count."""
    cells = RouteCells("matching", "app")
    for method, status in [("GET", 200), ("GET", 200), ("GET", 503), ("POST", 200)]:
        cells.record(method, status, 0.01)
    assert cells.requests == {("GET", 200): [2], ("GET", 503): [1], ("POST", 200): [1]}


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (2.0, STANDARD.index(2.0)), (60.0, 16), (60.1, 17), (1e9, 17)],
)
def test_a_duration_falls_into_its_bucket(seconds: float, bucket: int) -> None:
    """A bound belongs to the bucket below it (`le`), and what is above all bounds to the last."""
    cells = RouteCells("matching", "app")
    cells.record("GET", 200, seconds)
    assert cells.durations.buckets.index(1) == bucket
    assert sum(cells.durations.buckets) == 1
    assert cells.durations.seconds == seconds


def test_an_upgraded_connection_has_no_duration() -> None:
    """A WebSocket of an hour is counted and leaves the latencies alone."""
    cells = RouteCells("matching", "app")
    cells.record("GET", 101, 3600.0)
    assert cells.requests == {("GET", 101): [1]}
    assert sum(cells.durations.buckets) == 0


def test_no_client_can_make_series() -> None:
    """10,000 methods and every status there may be leave a bounded number of cells."""
    cells = RouteCells("matching", "app")
    for number in range(10_000):
        cells.record(f"M{number}", number % 1000, 0.01)
    assert {method for method, _ in cells.requests} == {"OTHER"}
    assert len(cells.requests) < 80
    assert sum(cell[0] for cell in cells.requests.values()) == 10_000


def test_reasons_are_bounded() -> None:
    """After `MOST_REASONS` different reasons the next ones count as `other`."""
    cells = RouteCells("matching", "app")
    for number in range(MOST_REASONS + 5):
        cells.retry(f"reason{number}")
    assert len(cells.retries) == MOST_REASONS + 1
    assert cells.retries["other"] == 5


def test_attempts_are_counted_by_verdict() -> None:
    """Every verdict has its count, and only those that prove an answer make the upstream alive."""
    cells = Metrics().upstream("app")
    for verdict in [Verdict.OK, Verdict.OK, Verdict.TRANSIENT, Verdict.CLIENT]:
        cells.attempt(verdict, 0.2)
    counts = cells.attempts()
    assert counts[Verdict.OK] == 2
    assert counts[Verdict.TRANSIENT] == counts[Verdict.CLIENT] == 1
    assert set(counts) == set(Verdict)
    assert cells.answers() == 3


def test_a_name_has_one_cell() -> None:
    """A pipeline compiled anew counts on where the one before stopped."""
    metrics = Metrics()
    metrics.route("matching", "app").record("GET", 200, 0.01)
    again = metrics.route("matching", "other")
    assert again.requests == {("GET", 200): [1]}
    assert again.upstream == "other"
    assert metrics.upstream("app") is metrics.upstream("app")
    assert metrics.listener("ingress") is metrics.listener("ingress")


@pytest.mark.parametrize("namespace", ["", "a-b", "1a", "a:b", "a b"])
def test_a_namespace_that_is_no_name_is_refused(namespace: str) -> None:
    """What Prometheus would refuse is refused at the start."""
    with pytest.raises(ValueError, match="cannot begin"):
        Metrics(namespace)


def test_transitions_are_counted_by_the_state_they_lead_to() -> None:
    """A look after each step finds each transition once."""
    breaker = Breaker()
    cells = Metrics().watch_breaker("app", breaker)
    assert cells.look() is None
    breaker.force(State.OPEN, None, 1.0)
    transition = cells.look()
    assert transition is not None
    assert transition.target is State.OPEN
    assert cells.look() is None
    breaker.force(State.CLOSED, None, 2.0)
    cells.look()
    assert cells.entered == {"closed": 1, "half_open": 0, "open": 1}


def test_a_new_breaker_takes_the_place_of_the_one_before() -> None:
    """Changed settings make another breaker: its counts are added to the series."""
    metrics = Metrics()
    for _ in range(2):
        breaker = Breaker()
        cells = metrics.watch_breaker("app", breaker)
        breaker.force(State.OPEN, None, 1.0)
        cells.look()
    assert cells.entered["open"] == 2
    assert metrics.breakers["app"].breaker is breaker


def test_cost_of_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what counting costs a request; the figure is for reading, as machines differ."""
    cells = RouteCells("matching", "app")
    upstream = Metrics().upstream("app")
    number = 20_000
    record = min(timeit.repeat(lambda: cells.record("GET", 200, 0.0123), number=number, repeat=3))
    attempt = min(timeit.repeat(lambda: upstream.attempt(Verdict.OK, 0.0123), number=number, repeat=3))
    with capsys.disabled():
        print(f"\nrecord {record / number * 1e6:.2f} µs, attempt {attempt / number * 1e6:.2f} µs")  # noqa: T201
    assert cells.requests[("GET", 200)][0] == 3 * number

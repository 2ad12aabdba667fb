"""When an origin counts as failing, and when it is looked at again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.health import MEMORY, STREAK, Health, failed_lately

INTERVAL = 5.0


def failing(health: Health, now: float) -> bool:
    return health.failing(now, INTERVAL)


def test_it_starts_well() -> None:
    """Nothing is known: it is asked."""
    assert not failing(Health(), 0.0)


def test_a_streak_of_failures() -> None:
    """Failures in a row count, and not before there are enough of them."""
    health = Health()
    for number in range(1, STREAK + 1):
        health.failed(100.0, certain=False)
        assert failing(health, 100.0) == (number >= STREAK)


def test_a_success_ends_the_streak() -> None:
    """One URL that always fails, among others that do well, is no failing origin."""
    health = Health()
    for _ in range(10):
        health.failed(100.0, certain=False)
        health.failed(100.0, certain=False)
        health.succeeded()
        assert not failing(health, 100.0)


def test_certainty() -> None:
    """A refused connection needs no second one."""
    health = Health()
    health.failed(100.0, certain=True)
    assert failing(health, 100.0)
    health.failed(101.0, certain=False)
    assert failing(health, 101.0)
    health.succeeded()
    assert not failing(health, 101.0)


def test_one_probe_an_interval() -> None:
    """The first who asks after an interval looks; all others wait for the next."""
    health = Health()
    health.failed(100.0, certain=True)
    assert not health.may_probe(104.9, INTERVAL)
    assert [health.may_probe(105.0, INTERVAL) for _ in range(3)] == [True, False, False]
    assert not health.may_probe(109.9, INTERVAL)
    assert health.may_probe(110.0, INTERVAL)


def test_a_failed_probe_waits_for_its_interval() -> None:
    """From its failure on, not from its start."""
    health = Health()
    health.failed(100.0, certain=True)
    assert health.may_probe(105.0, INTERVAL)
    health.failed(108.0, certain=True)
    assert not health.may_probe(112.9, INTERVAL)
    assert health.may_probe(113.0, INTERVAL)


def test_old_failures_are_forgotten() -> None:
    """After so long without a request nobody knows: it is asked."""
    health = Health()
    health.failed(100.0, certain=True)
    assert failing(health, 100.0 + MEMORY * INTERVAL - 0.1)
    assert not failing(health, 100.0 + MEMORY * INTERVAL)


def test_a_single_url() -> None:
    """The same of one URL; a zero says that it never failed."""
    assert not failed_lately(0.0, 1.0, INTERVAL)
    assert failed_lately(100.0, 100.0, INTERVAL)
    assert not failed_lately(100.0, 100.0 + MEMORY * INTERVAL, INTERVAL)


@given(
    st.lists(st.tuples(st.sampled_from(["ok", "failed", "certain", "probe"]), st.floats(0, 20)), max_size=60)
)
def test_probes_are_never_closer_than_the_interval(steps: list[tuple[str, float]]) -> None:
    """Whatever happens between them; and after a success it is well."""
    health = Health()
    now, last = 1000.0, 0.0
    for step, seconds in steps:
        now += seconds
        if step == "probe":
            if health.may_probe(now, INTERVAL):
                assert now - last >= INTERVAL
                last = now
        elif step == "ok":
            health.succeeded()
            assert not failing(health, now)
        else:
            health.failed(now, certain=step == "certain")

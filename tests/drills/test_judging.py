"""The verdict follows from the figures."""

from __future__ import annotations

import pytest

from sidecar.drills.judging import Measured, Status, judged, readiness, recovery, throughput
from sidecar.drills.scenario import Asserts

ASSERTS = Asserts.model_validate(
    {"availability": "99%", "p95": "500ms", "amplification": 1.2, "wrong": "0%", "hit_ratio": "50%"}
)
GOOD = Measured(requests=100, availability=0.99, p95=0.5, amplification=1.2, wrong=0.0, hit_ratio=0.5)


def second(due: int, fine: int) -> dict[str, int]:
    return {"due": due, "fine": fine}


def test_a_limit_that_is_reached_holds() -> None:
    """At the limit it holds, whichever side is the good one."""
    assert all(point.held for point in judged(ASSERTS, GOOD))


@pytest.mark.parametrize(
    ("name", "value"),
    [("availability", 0.98), ("p95", 0.51), ("amplification", 1.3), ("wrong", 0.01), ("hit_ratio", 0.49)],
)
def test_a_limit_that_is_passed_does_not(name: str, value: float) -> None:
    """Past its limit a point does not hold, it says what to do, and the others are as they were."""
    from dataclasses import replace

    points = judged(ASSERTS, replace(GOOD, **{name: value}))  # type: ignore[arg-type]
    assert [point.name for point in points if not point.held] == [name]
    assert all(bool(point.mend) != point.held for point in points)


def test_what_was_not_measured_does_not_hold() -> None:
    """No figure is no proof."""
    assert not any(point.held for point in judged(ASSERTS, Measured()))


KINDS = ("connections", "permits", "tasks", "fds", "memory")


@pytest.mark.parametrize("kind", KINDS)
def test_what_leaks_has_its_own_point(kind: str) -> None:
    """Each kind is told with its figure and its limit, and the one that grew too much does not hold."""
    asserts = Asserts.model_validate({"leaks": {"memory": "1MiB", "tasks": 2}})
    at_limit = {"connections": 0, "permits": 0, "tasks": 2, "fds": 3, "memory": 1 << 20}
    points = judged(asserts, Measured(leaks=at_limit))
    assert [(point.name, point.limit, point.measured) for point in points] == [
        (f"leaked_{it}", at_limit[it], at_limit[it]) for it in KINDS
    ]
    assert all(point.held for point in points)
    worse = judged(asserts, Measured(leaks={**at_limit, kind: at_limit[kind] + 1}))
    assert [point.name for point in worse if not point.held] == [f"leaked_{kind}"]
    assert not any(point.held for point in judged(asserts, Measured()))


@pytest.mark.parametrize(
    ("timeline", "mended", "seconds"),
    [
        ([second(10, 10)] * 5, 2.0, 0.0),
        ([second(10, 10), second(10, 0), second(10, 0), second(10, 10)], 2.0, 1.0),
        ([second(10, 0), second(10, 10)], 1.5, 0.0),
        ([second(10, 10), second(0, 0), second(10, 9)], 1.0, 2.0),
    ],
)
def test_recovery(timeline: list[dict[str, int]], mended: float, seconds: float) -> None:
    """It ends with the last second that was not well after what was broken was mended."""
    assert recovery(timeline, mended) == seconds


def test_throughput_is_of_the_last_step() -> None:
    """What the ramp answered does not count."""
    assert throughput([second(1, 1), second(20, 18), second(20, 20)], 1.0, 3.0) == 19.0


FULL = Measured(requests=10, availability=1.0, p95=1.0, throughput=600.0, memory=100 << 20)


@pytest.mark.parametrize(
    ("measured", "drills", "score", "verdict"),
    [
        (FULL, {"a": "passed"}, 100, "PRODUCTION_READY"),
        (FULL, {"a": "passed", "b": "failed"}, 90, "PRODUCTION_READY"),
        (FULL, {"a": "failed"}, 80, "MOSTLY_READY"),
        (FULL, {}, 80, "MOSTLY_READY"),
        (
            Measured(requests=10, availability=1.0, p95=4.0, throughput=250.0, memory=1),
            {},
            60,
            "NEEDS_OPTIMIZATION",
        ),
        (Measured(), {}, 0, "NOT_READY"),
    ],
)
def test_readiness(measured: Measured, drills: dict[str, Status], score: float, verdict: str) -> None:
    """20 points each, as far as each is reached; the guide's words for the sum."""
    ready = readiness([("passed", measured)], drills, ["passed"])
    assert (ready.score, ready.verdict) == (score, verdict)
    assert all(point.held or point.mend for point in ready.points)


@pytest.mark.parametrize(
    ("passed", "word"), [(20, "EXCELLENT"), (18, "GOOD"), (15, "ACCEPTABLE"), (13, "NEEDS_IMPROVEMENT")]
)
def test_the_word_for_the_tests(passed: int, word: str) -> None:
    """By the share of scenarios that passed."""
    tests: list[Status] = [*["passed"] * passed, *["failed"] * (20 - passed)]  # type: ignore[list-item]
    assert readiness([], {}, tests).tests == word


def test_the_mend_of_failover_names_the_drills() -> None:
    """Those that did not pass, and no others."""
    drills: dict[str, Status] = {"app-outage": "passed", "maps-quota": "failed", "big-bodies": "aborted"}
    [point] = [it for it in readiness([("passed", FULL)], drills, []).points if it.name == "failover"]
    assert point.mend.endswith("sidecar drill maps-quota, big-bodies")

"""What is told of a run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.drills.figures import Held
from sidecar.drills.judging import MENDS, Measured, judged, readiness
from sidecar.drills.report import as_json, as_markdown, lines, shown
from sidecar.drills.runner import Machine, Outcome
from sidecar.drills.scenario import Asserts

LOAD = {
    "requests": 200,
    "failed": 3,
    "causes": {"status 503": 2, "timeout": 1},
    "slip": {"p99": 0.0012},
    "kept_up": True,
    "timeline": [],
}
MEASURED = Measured(requests=200, availability=0.985, p50=0.004, p95=0.3, hit_ratio=0.5, degraded=0.0)


def outcome(**other: Any) -> Outcome:
    asserts = Asserts.model_validate({"availability": "99%", "p95": "500ms"})
    plain = {
        "name": "mine",
        "title": "",
        "status": "failed",
        "reason": "",
        "points": judged(asserts, MEASURED),
        "measured": MEASURED,
        "load": LOAD,
        "samples": [],
        "windows": [],
    }
    return Outcome(**{**plain, **other})


def test_the_verdict_has_each_figure_and_its_limit() -> None:
    """Those with a limit by themselves, the others besides; causes of failures, and the load's honesty."""
    assert [" ".join(line.split()) for line in lines(outcome())] == [
        "mine: FAILED",
        f"NOT availability 98.5 % limit 99 % ({MENDS['availability']})",
        "ok p95 300.0 ms limit 500.0 ms",
        "200 requests, 3 failed: 2 × status 503, 1 × timeout",
        "besides: p50 4.0 ms, hit_ratio 50 %, degraded 0 %",
        "the load kept to its schedule: 99 % of it was sent within 1.2 ms",
    ]


def test_a_load_that_could_not_keep_up_says_so() -> None:
    """With how late it was."""
    late = {**LOAD, "kept_up": False, "slip": {"p99": 0.05}}
    assert "the load could not keep up: 1 % was sent 50.0 ms late" in "\n".join(lines(outcome(load=late)))


def test_where_it_ran_and_what_was_held() -> None:
    """CPUs, what else there was to do, the share of the time; and both figures of what may leak."""
    before = Held(connections=0, permits=0, tasks=12, fds=19, memory=80 << 20)
    after = before._replace(tasks=13, memory=(82 << 20))
    run = outcome(machine=Machine(2, 0.5), share=0.5, held=(before, after))
    told = "\n".join(lines(run))
    assert "on 2 CPUs for all of it; load average before 0.5; 50 % of the scenario's time" in told
    assert "tasks 12 and 13, fds 19 and 19, memory 80MiB and 82MiB" in told
    ready = readiness([], {}, [])
    [shown_in_json] = json.loads(as_json([run], ready))["scenarios"]
    assert [it["tasks"] for it in shown_in_json["held"]] == [12, 13]
    assert "tasks 12 and 13" in as_markdown([run], ready)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("availability", 0.99999, "99.99 %"),
        ("p95", 1.5, "1.50 s"),
        ("recovery", 0.0, "0.0 ms"),
        ("throughput", 532.44, "532.4/s"),
        ("memory", 104_976_384, "100MiB"),
        ("leaked_memory", 0, "0KiB"),
        ("leaked_memory", 500 << 10, "500KiB"),
        ("amplification", 0.15678, "0.157"),
        ("provider_calls", 12, "12"),
        ("hit_ratio", None, "not measured"),
    ],
)
def test_figures_are_rounded_against_us(name: str, value: float | None, text: str) -> None:
    """A share that is not quite all is not told as all; units are those of people."""
    assert shown(name, value) == text

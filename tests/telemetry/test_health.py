"""Health: what findings on the app add up to, and what the probes are told."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.decisions.breaker import Breaker, State
from sidecar.telemetry.health import (
    FAILURES,
    INTERVAL,
    INTERVAL_AT_START,
    INTERVAL_IN_DOUBT,
    AppCheck,
    Health,
)
from sidecar.telemetry.history import History
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.own_checks import LAG_DEGRADED, RedisCheck, fault_checks
from sidecar.telemetry.probes import Finding, Sign
from sidecar.telemetry.system import System
from sidecar.telemetry.upstream_checks import UpstreamChecks
from tests.support.clock import ManualClock

P, X, B, S, F, D = Sign.PASSED, Sign.ODD, Sign.BUSY, Sign.SILENT, Sign.FAILED, Sign.DEAD


@pytest.mark.parametrize(
    ("signs", "status", "answered"),
    [
        ([P], "healthy", True),
        ([X], "degraded", True),
        ([D], "unhealthy", False),
        ([B], "unhealthy", False),
        ([F, F], "unhealthy", False),
        ([D, D, D, P], "healthy", True),
        ([P, D], "degraded", True),
        ([P, D, D], "degraded", True),
        ([P, D, D, D], "unhealthy", True),
        ([P, F, F, F], "unhealthy", True),
        ([P, S, S, S], "unhealthy", True),
        ([P, D, F, S], "unhealthy", True),
        ([P, D, D, P, D, D], "degraded", True),
        ([P, B, B, B, B, B, B], "degraded", True),
        ([P, D, D, B, D, D], "degraded", True),
        ([P, D, D, D, B], "degraded", True),
        ([P, D, D, D, D, P], "healthy", True),
        ([P, B, P], "healthy", True),
    ],
)
def test_findings_add_up(signs: list[Sign], status: str, answered: bool) -> None:
    """Busy is never dead; three findings in a row against the app are; one pass heals."""
    app = AppCheck()
    for sign in signs:
        app.judge(Finding(sign), flowing=False)
    assert (app.status, app.answered) == (status, answered)


@pytest.mark.parametrize(("sign", "status"), [(S, "degraded"), (B, "degraded"), (D, "unhealthy")])
def test_traffic_that_flows_speaks_for_the_app(sign: Sign, status: str) -> None:
    """A probe that gets no connection says nothing while real requests are answered; a refusal does."""
    app = AppCheck()
    app.judge(Finding(P), flowing=True)
    for _ in range(2 * FAILURES):
        app.judge(Finding(sign), flowing=True)
    assert app.status == status


class Script:
    """A probe that finds what it is told; the last finding stays."""

    def __init__(self, *signs: Sign) -> None:
        self.signs = list(signs)
        self.asked = 0
        self.closed = False

    async def __call__(self) -> Finding:
        self.asked += 1
        sign = self.signs.pop(0) if len(self.signs) > 1 else self.signs[0]
        return Finding(sign, "" if sign is P else sign.value)

    async def close(self) -> None:
        self.closed = True


class Ward:
    """Health with its parts."""

    def __init__(self, probe: Script | None = None) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.system = System(self.clock)
        self.answers = 0
        self.health = Health(
            self.clock,
            system=self.system,
            probe=probe,
            answers=lambda: self.answers,
            version="1.2.3",
        )
        self.history = History(self.metrics, self.clock.now())
        self.health.add_all(UpstreamChecks(self.metrics, self.history, self.clock))

    def check(self, name: str) -> dict[str, Any]:
        """As the detailed report has it."""
        report: dict[str, Any] = self.health.report(detailed=True)
        found: dict[str, Any] = report["checks"][name]
        return found

    def breaker(self, name: str, state: State) -> None:
        breaker = Breaker()
        breaker.force(state, None, self.clock.now())
        self.metrics.watch_breaker(name, breaker)


async def test_without_an_app_ready_needs_only_open_listeners() -> None:
    """A child that is no server: nothing to wait for."""
    ward = Ward()
    ward.health.start()
    assert ward.health.ready() == (False, "starting")
    ward.health.open()
    assert ward.health.ready() == (True, "")
    assert ward.health.answered.is_set()
    assert ward.health.status() == "healthy"
    await ward.health.close()


async def test_ready_once_the_app_answers() -> None:
    """Asked often at the start, and ready with its first answer."""
    probe = Script(D, D, D, D, P)
    ward = Ward(probe)
    ward.health.start()
    ward.health.open()
    await ward.clock.advance(0)
    assert ward.health.ready() == (False, "the app: dead")
    await ward.clock.advance(3.5 * INTERVAL_AT_START)
    assert not ward.health.answered.is_set()
    await ward.clock.advance(INTERVAL_AT_START)
    assert ward.health.answered.is_set()
    assert ward.health.ready() == (True, "")
    await ward.health.close()
    assert probe.closed


async def test_a_dead_app_makes_unready_and_a_living_one_ready_again() -> None:
    """Three refusals in a row; asked more often while in doubt; back with the first answer."""
    probe = Script(P, D, D, D, P)
    ward = Ward(probe)
    ward.health.start()
    ward.health.open()
    await ward.clock.advance(INTERVAL)
    assert (ward.health.status(), ward.health.ready()[0]) == ("degraded", True)
    await ward.clock.advance(2 * INTERVAL_IN_DOUBT)
    assert (ward.health.status(), ward.health.ready()) == ("unhealthy", (False, "the app: dead"))
    assert ward.health.serving
    await ward.clock.advance(INTERVAL_IN_DOUBT)
    assert (ward.health.status(), ward.health.ready()[0]) == ("healthy", True)
    asked = probe.asked
    await ward.clock.advance(INTERVAL - 0.1)
    assert probe.asked == asked
    await ward.health.close()


async def test_a_busy_app_stays_ready() -> None:
    """An app that stands still in a synchronous call is degraded for as long as it takes."""
    ward = Ward(Script(P, B))
    ward.health.start()
    ward.health.open()
    await ward.clock.advance(600)
    assert (ward.health.status(), ward.health.ready()[0]) == ("degraded", True)
    await ward.health.close()


async def test_answered_traffic_counts_as_flowing() -> None:
    """While the count of answers rises between probes, silence on the probe's side is load."""
    ward = Ward(Script(P, S))
    ward.health.start()
    ward.health.open()
    for _ in range(20):
        ward.answers += 1
        await ward.clock.advance(INTERVAL_IN_DOUBT)
    assert ward.health.status() == "degraded"
    await ward.clock.advance(FAILURES * INTERVAL_IN_DOUBT)
    assert ward.health.status() == "unhealthy"
    await ward.health.close()


async def test_a_probe_that_breaks_counts_against_the_app() -> None:
    """A bug in a probe ends neither the polling nor the honesty of the status."""

    class Broken(Script):
        async def __call__(self) -> Finding:
            await super().__call__()
            if self.asked > 1:
                raise RuntimeError("bug")
            return Finding(P)

    probe = Broken(P)
    ward = Ward(probe)
    ward.health.start()
    ward.health.open()
    await ward.clock.advance(INTERVAL + 10 * INTERVAL_IN_DOUBT)
    assert probe.asked > FAILURES
    assert ward.health.ready() == (False, "the app: the probe failed: RuntimeError('bug')")
    await ward.health.close()


async def test_draining_is_unready_and_not_serving() -> None:
    """From the first moment of a stop no new traffic should come."""
    ward = Ward()
    ward.health.open()
    ward.health.drain()
    assert ward.health.ready() == (False, "draining")
    assert not ward.health.serving


@pytest.mark.parametrize(
    ("app", "breakers", "status"),
    [
        (P, {}, "healthy"),
        (P, {"app": State.CLOSED}, "healthy"),
        (P, {"app": State.CLOSED, "maps": State.OPEN}, "degraded"),
        (P, {"app": State.HALF_OPEN}, "degraded"),
        (D, {}, "unhealthy"),
        (D, {"app": State.OPEN, "maps": State.CLOSED}, "unhealthy"),
        (D, {"app": State.OPEN}, "critical"),
        (D, {"app": State.HALF_OPEN, "maps": State.OPEN}, "critical"),
    ],
)
async def test_the_overall_status(app: Sign, breakers: dict[str, State], status: str) -> None:
    """Optional checks degrade, the required one makes unhealthy, nothing left to call is critical."""
    ward = Ward(Script(app))
    ward.health.start()
    ward.health.open()
    for name, state in breakers.items():
        ward.breaker(name, state)
    await ward.clock.advance(0)
    assert ward.health.status() == status
    await ward.health.close()


async def test_a_breaker_in_shadow_mode_keeps_nobody_out() -> None:
    """Open it is a sign that the upstream fails; requests go there all the same."""
    ward = Ward(Script(D))
    ward.health.start()
    ward.health.open()
    ward.breaker("app", State.OPEN)
    ward.metrics.breakers["app"].mode = "shadow"
    await ward.clock.advance(0)
    check = ward.check("upstream:app")
    assert (check["status"], check["mode"]) == ("degraded", "shadow")
    assert ward.health.status() == "unhealthy"
    await ward.health.close()


class Store:
    """A shared store that is where it is told."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.latency = 0.0004


@pytest.mark.parametrize(
    ("reason", "check"),
    [
        ("", {"status": "healthy", "required": False, "latency_ms": 0.4}),
        ("refused", {"status": "degraded", "required": False, "reason": "refused"}),
    ],
)
async def test_a_redis_that_is_away_is_degraded(reason: str, check: dict[str, object]) -> None:
    """It is optional: the sidecar goes on, and is ready."""
    ward = Ward()
    ward.health.add(RedisCheck(Store(reason)))
    ward.health.open()
    found = ward.check("redis")
    assert found.pop("since")
    assert found == check
    assert (ward.health.status(), ward.health.ready()[0]) == (check["status"], True)


async def test_injected_faults_are_seen() -> None:
    """While one is in force the health is degraded and says where; not a word of it else."""
    ward = Ward()
    ward.health.open()
    active: list[str] = []
    ward.health.add_all(fault_checks(lambda: active))
    assert "faults" not in ward.health.look()
    active.append("route geocode")
    assert ward.check("faults")["active"] == ["route geocode"]
    assert (ward.health.status(), ward.health.ready()[0]) == ("degraded", True)


async def test_a_late_event_loop_is_degraded() -> None:
    """A loop that stood still for a second is told of, and still ready."""
    ward = Ward()
    ward.health.open()
    ward.system._lags.append(LAG_DEGRADED)
    assert (ward.health.status(), ward.health.ready()[0]) == ("degraded", True)


async def test_the_report_has_every_check() -> None:
    """Short and detailed: status per check; latency, reason, since and the machine in the second."""
    ward = Ward(Script(P, D))
    ward.health.start()
    ward.health.open()
    ward.breaker("maps", State.OPEN)
    await ward.clock.advance(INTERVAL)
    short = ward.health.report()
    assert short == {
        "status": "degraded",
        "ready": True,
        "version": "1.2.3",
        "uptime_seconds": 5.0,
        "checks": {
            "app": {"status": "degraded"},
            "upstream:maps": {"status": "degraded"},
            "event_loop": {"status": "healthy"},
        },
    }
    detailed: dict[str, Any] = ward.health.report(detailed=True)
    assert detailed["checks"]["app"] == {
        "status": "degraded",
        "required": True,
        "latency_ms": 0.0,
        "reason": "dead",
        "since": "2023-11-14T22:13:25.000Z",
    }
    maps = detailed["checks"]["upstream:maps"]
    assert (maps["circuit_breaker"], maps["required"]) == ("open", False)
    assert detailed["system"]["resident_bytes"] > 0
    await ward.clock.advance(INTERVAL_IN_DOUBT)
    again: dict[str, Any] = ward.health.report(detailed=True)
    assert again["checks"]["app"]["since"] == "2023-11-14T22:13:25.000Z"
    await ward.health.close()

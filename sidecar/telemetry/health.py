"""How well the sidecar can serve: the checks behind `/health`, and what the probes are told.

* `live`: the event loop answers at all.
* `ready`: the listeners are open, the app has answered once and is not dead, nothing is draining.
  Degraded is not unready: taking a slow app out of service only moves its load to the next one.
* `status`: `healthy`; `degraded` when something optional fails or the app is in doubt; `unhealthy` when
  the app, which is required, fails; `critical` when no upstream would be called either.

Busy is not dead: only refusals and answers of failure, `app.health_failures` in a row,
make the app fail. An app that
takes connections, or whose answers to real traffic keep coming, is at most degraded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from sidecar.telemetry.log import get_logger
from sidecar.telemetry.probes import Finding, Probe, Sign
from sidecar.telemetry.stamp import Stamp

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.metrics import Metrics
    from sidecar.telemetry.system import System

Status = Literal["healthy", "degraded", "unhealthy", "critical"]

FAILURES = 3
"""Findings in a row, against the app, that make it fail, unless the configuration says another number."""
INTERVAL = 5.0
"""Seconds between two probes of an app that is well, likewise."""
INTERVAL_IN_DOUBT = 1.0
"""Seconds between two probes of one that is not: it should be back in service soon after it is up."""
INTERVAL_AT_START = 0.2
"""Seconds between two probes until the app has answered once."""
LAG_DEGRADED = 1.0
"""Seconds of event-loop lag, at worst in the last minute, that count as degraded."""


class AppCheck:
    """What the findings on the app add up to."""

    def __init__(self, failures: int = FAILURES) -> None:
        """`failures` in a row make it fail."""
        self._most = failures
        self.answered = False
        """A probe or real traffic, at least once."""
        self.status: Status = "unhealthy"
        self.reason = "it has not answered yet"
        self.failures = 0
        """Findings against it, in a row."""

    def judge(self, finding: Finding, *, flowing: bool) -> None:
        """Takes in one finding; `flowing` tells that real requests were answered since the last one."""
        sign = finding.sign
        self.reason = finding.reason
        if sign in (Sign.PASSED, Sign.ODD):
            self.failures = 0
            self.answered = True
            self.status = "healthy" if sign is Sign.PASSED else "degraded"
            return
        self.answered = self.answered or flowing
        if sign is Sign.BUSY or (sign is Sign.SILENT and flowing):
            self.failures = 0
        else:
            self.failures += 1
        if not self.answered or self.failures >= self._most:
            self.status = "unhealthy"
        else:
            self.status = "degraded"


class _Since:
    """When each check took on the status it has, in Unix seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, tuple[str, float]] = {}

    def of(self, check: str, status: str) -> float:
        known = self._known.get(check)
        if known is None or known[0] != status:
            known = self._known[check] = (status, self._clock.wall())
        return known[1]


class SharedStore(Protocol):
    """What the Redis of the cache tells of itself."""

    reason: str
    """Why it is away; empty while it is there."""
    latency: float
    """Smoothed round-trip time in seconds."""


class Health:
    """Probes the app beside the traffic, and tells what is known when asked.

    `probe` is None where no app is to be waited for: then ready needs only `open`. `answers` counts what
    the app answered to real traffic so far (`UpstreamCells.answers`). `faults` names the places where faults
    are injected.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        metrics: Metrics,
        system: System,
        probe: Probe | None,
        answers: Callable[[], int] | None = None,
        faults: Callable[[], list[str]] | None = None,
        shared_store: SharedStore | None = None,
        version: str = "",
        interval: float = INTERVAL,
        failures: int = FAILURES,
        configuration: Callable[[], dict[str, dict[str, object]]] = dict,
    ) -> None:
        """`configuration`: checks of the configuration in force, by name."""
        self._configuration = configuration
        self._clock = clock
        self._metrics = metrics
        self._system = system
        self._probe = probe
        self._answers = answers
        self._faults = faults
        self._shared_store = shared_store
        self._version = version
        self._app = AppCheck(failures)
        self._interval = interval
        self._latency: float | None = None
        self._opened = False
        self._draining = False
        self.batch_trouble: Callable[[], str] | None = None
        """What is wrong with the store of batches, where there may be batches; empty: nothing."""
        self._since = _Since(clock)
        self._started = clock.now()
        self._stamp = Stamp()
        self._task: asyncio.Task[None] | None = None
        self._log = get_logger("sidecar.health")
        self.answered = asyncio.Event()
        """Set once the app has answered; at once where no app is probed."""
        if probe is None:
            self.answered.set()

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to probe the app."""
        if self._probe is not None:
            self._task = asyncio.get_running_loop().create_task(self._run(self._probe), name="health probe")

    @property
    def probing(self) -> bool:
        return self._probe is not None

    async def watch(self, probe: Probe | None) -> None:
        """From now on the app is probed like this; what is known of it stays until that says otherwise."""
        await self.close()
        self._probe = probe
        if probe is None:
            self.answered.set()
        else:
            self.start()

    def open(self) -> None:
        """The listeners take requests."""
        self._opened = True

    def drain(self) -> None:
        """No more requests should come: unready from now on."""
        self._draining = True

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._probe is not None:
            await self._probe.close()

    async def _run(self, probe: Probe) -> None:
        app = self._app
        answers = self._count()
        while True:
            before = self._clock.now()
            try:
                finding = await probe()
            except Exception as error:  # noqa: BLE001 # a status must not stand still because a probe broke
                finding = Finding(Sign.DEAD, f"the probe failed: {error!r}")
            self._latency = self._clock.now() - before
            last, answers = answers, self._count()
            was = app.status
            app.judge(finding, flowing=answers > last)
            self._since.of("app", app.status)
            if app.answered and not self.answered.is_set():
                self.answered.set()
            elif app.answered and app.status != was:
                self._log.warning("app health changed", status=app.status, before=was, reason=app.reason)
            if not app.answered:
                await self._clock.sleep(INTERVAL_AT_START)
            else:
                await self._clock.sleep(
                    self._interval if app.status == "healthy" else min(INTERVAL_IN_DOUBT, self._interval)
                )

    def _count(self) -> int:
        return self._answers() if self._answers is not None else 0

    # -- what is known -------------------------------------------------------------------------

    @property
    def serving(self) -> bool:
        """Requests are taken: the listeners are open and nothing is draining."""
        return self._opened and not self._draining

    def ready(self) -> tuple[bool, str]:
        """Whether traffic should come here; if not, why."""
        if self._draining:
            return False, "draining"
        if not self._opened:
            return False, "starting"
        if self._probe is not None and self._app.status == "unhealthy":
            return False, f"the app: {self._app.reason}"
        return True, ""

    def status(self) -> Status:
        return self._overall(self.checks())

    def report(self, *, detailed: bool = False) -> dict[str, object]:
        """What `/health` says; `detailed` adds the figures behind it."""
        checks = self.checks()
        ready, reason = self.ready()
        report: dict[str, object] = {"status": self._overall(checks), "ready": ready}
        if reason:
            report["reason"] = reason
        report["version"] = self._version
        report["uptime_seconds"] = round(self._clock.now() - self._started, 3)
        if not detailed:
            report["checks"] = {name: {"status": check["status"]} for name, check in checks.items()}
            return report
        for name, check in checks.items():
            check["since"] = self._stamp(self._since.of(name, str(check["status"])))
        report["checks"] = checks
        system = self._system
        report["system"] = {
            "cpu_percent": system.last.cpu_percent,
            "memory_percent": system.last.memory_percent,
            "resident_bytes": system.last.process_resident,
            "open_fds": system.last.process_files,
            "threads": system.last.process_threads,
        }
        return report

    def checks(self) -> dict[str, dict[str, object]]:
        """Every check by name."""
        now = self._clock.now()
        checks: dict[str, dict[str, object]] = {}
        if self._probe is not None:
            app = self._app
            checks["app"] = {"status": app.status, "required": True}
            if self._latency is not None:
                checks["app"]["latency_ms"] = round(self._latency * 1000, 3)
            if app.reason:
                checks["app"]["reason"] = app.reason
        for scope, cells in self._metrics.breakers.items():
            state = cells.breaker.state(now).value
            check: dict[str, object] = {
                "status": "healthy" if state == "closed" else "degraded",
                "required": False,
                "circuit_breaker": state,
            }
            if state != "closed":
                check["reason"] = f"its circuit breaker is {state.replace('_', '-')}"
            if cells.mode != "enforce":
                check["mode"] = cells.mode
            checks[f"upstream:{scope}"] = check
        store = self._shared_store
        if store is not None:
            checks["redis"] = {"status": "degraded" if store.reason else "healthy", "required": False}
            if store.reason:
                checks["redis"]["reason"] = store.reason
            else:
                checks["redis"]["latency_ms"] = round(store.latency * 1000, 3)
        if self.batch_trouble is not None:
            trouble = self.batch_trouble()
            checks["batch"] = {"status": "degraded" if trouble else "healthy", "required": False}
            if trouble:
                checks["batch"]["reason"] = trouble
        active = self._faults() if self._faults is not None else []
        if active:
            checks["faults"] = {
                "status": "degraded",
                "required": False,
                "reason": "faults are injected on purpose",
                "active": active,
            }
        checks |= self._configuration()
        lag = self._system.lag_max
        checks["event_loop"] = {
            "status": "degraded" if lag >= LAG_DEGRADED else "healthy",
            "required": False,
            "lag_ms": round(self._system.lag * 1000, 3),
            "lag_max_ms": round(lag * 1000, 3),
        }
        return checks

    def _overall(self, checks: dict[str, dict[str, object]]) -> Status:
        if self._probe is not None and self._app.status == "unhealthy":
            breakers = [
                "closed" if "mode" in check else check["circuit_breaker"]
                for check in checks.values()
                if "circuit_breaker" in check
            ]
            return "critical" if breakers and "closed" not in breakers else "unhealthy"
        if any(check["status"] != "healthy" for check in checks.values()):
            return "degraded"
        return "healthy"

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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sidecar.telemetry.checks import AsyncCheck, Check, CheckResult, Checks, Looked, Polled, Since, Status
from sidecar.telemetry.log import get_logger
from sidecar.telemetry.own_checks import LoopCheck
from sidecar.telemetry.probes import Finding, Probe, Sign
from sidecar.telemetry.stamp import Stamp

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.system import System

FAILURES = 3
"""Findings in a row, against the app, that make it fail, unless the configuration says another number."""
INTERVAL = 5.0
"""Seconds between two probes of an app that is well, likewise."""
INTERVAL_IN_DOUBT = 1.0
"""Seconds between two probes of one that is not: it should be back in service soon after it is up."""
INTERVAL_AT_START = 0.2
"""Seconds between two probes until the app has answered once."""
NOTICE = 5.0
"""Seconds between two looks at all checks, asked or not: it shows since when one has failed."""


class AppCheck:
    """What the findings on the app add up to."""

    name = "app"
    required = True

    def __init__(self, failures: int = FAILURES) -> None:
        """`failures` in a row make it fail."""
        self._most = failures
        self.answered = False
        """A probe or real traffic, at least once."""
        self.status: Status = "unhealthy"
        self.reason = "it has not answered yet"
        self.failures = 0
        """Findings against it, in a row."""
        self.latency: float | None = None
        """Seconds that the last probe took."""

    def look(self) -> CheckResult:
        return CheckResult(self.status, self.reason, self.latency)

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


class Health:
    """Probes the app beside the traffic, and tells what is known when asked.

    `probe` is None where no app is to be waited for: then ready needs only `open`. `answers` counts what
    the app answered to real traffic so far (`UpstreamCells.answers`). The app and the event loop are
    checked always; all else registers itself: `add`, `add_all`, `poll`.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        system: System,
        probe: Probe | None,
        answers: Callable[[], int] | None = None,
        version: str = "",
        interval: float = INTERVAL,
        failures: int = FAILURES,
    ) -> None:
        self._clock = clock
        self._system = system
        self._probe = probe
        self._answers = answers
        self._version = version
        self._app = AppCheck(failures)
        self._interval = interval
        self._opened = False
        self._draining = False
        self._checks: list[Checks] = []
        self._polled: list[Polled] = []
        self._since = Since(clock)
        self._started = clock.now()
        self._stamp = Stamp()
        self._probing: asyncio.Task[None] | None = None
        self._noticing: asyncio.Task[None] | None = None
        self._log = get_logger("sidecar.health")
        self.answered = asyncio.Event()
        """Set once the app has answered; at once where no app is probed."""
        if probe is None:
            self.answered.set()
        self.add_all(lambda: (self._app,) if self._probe is not None else ())
        self.add(LoopCheck(system))

    # -- what is checked -----------------------------------------------------------------------

    def add(self, check: Check) -> None:
        """Looks at `check` too, from now on. No two may have the same name."""
        self.add_all(lambda: (check,))

    def add_all(self, checks: Checks) -> None:
        """Looks at whatever `checks` gives when a report is made."""
        self._checks.append(checks)

    def poll(self, check: AsyncCheck, *, timeout: float) -> Polled:
        """Asks `check` now and then, once started, for `timeout` seconds at most; gives what can be added."""
        polled = Polled(check, self._clock, timeout=timeout)
        self._polled.append(polled)
        return polled

    def look(self) -> dict[str, Looked]:
        """Every check by name."""
        return {
            check.name: Looked(check.required, check.look()) for checks in self._checks for check in checks()
        }

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to probe the app, and to ask what must be asked."""
        self._noticing = asyncio.get_running_loop().create_task(self._notice(), name="health checks")
        for polled in self._polled:
            polled.start()
        self._start_probe()

    def _start_probe(self) -> None:
        if self._probe is not None:
            loop = asyncio.get_running_loop()
            self._probing = loop.create_task(self._run(self._probe), name="health probe")

    @property
    def probing(self) -> bool:
        return self._probe is not None

    async def watch(self, probe: Probe | None) -> None:
        """From now on the app is probed like this; what is known of it stays until that says otherwise."""
        await self._end_probe()
        self._probe = probe
        if probe is None:
            self.answered.set()
        self._start_probe()

    async def _end_probe(self) -> None:
        await _ended(self._probing)
        self._probing = None
        if self._probe is not None:
            await self._probe.close()

    def open(self) -> None:
        """The listeners take requests."""
        self._opened = True

    def drain(self) -> None:
        """No more requests should come: unready from now on."""
        self._draining = True

    async def close(self) -> None:
        await self._end_probe()
        await _ended(self._noticing)
        for polled in self._polled:
            await polled.close()

    async def _notice(self) -> None:
        while True:
            self._since.note(self.look())
            await self._clock.sleep(NOTICE)

    async def _run(self, probe: Probe) -> None:
        app = self._app
        answers = self._count()
        while True:
            before = self._clock.now()
            try:
                finding = await probe()
            except Exception as error:  # noqa: BLE001 # a status must not stand still because a probe broke
                finding = Finding(Sign.DEAD, f"the probe failed: {error!r}")
            app.latency = self._clock.now() - before
            last, answers = answers, self._count()
            was = app.status
            app.judge(finding, flowing=answers > last)
            if app.status != was:
                self._since.note(self.look())
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
        return self._ready(self.look())

    def _ready(self, looked: Mapping[str, Looked]) -> tuple[bool, str]:
        if self._draining:
            return False, "draining"
        if not self._opened:
            return False, "starting"
        for name, (required, found) in looked.items():
            if required and found.status == "unhealthy":
                return False, f"the {name}: {found.reason}"
        return True, ""

    def status(self) -> Status:
        return overall(self.look())

    def report(self, *, detailed: bool = False) -> dict[str, object]:
        """What `/health` says; `detailed` adds the figures behind it."""
        looked = self.look()
        since = self._since.note(looked)
        ready, reason = self._ready(looked)
        report: dict[str, object] = {"status": overall(looked), "ready": ready}
        if reason:
            report["reason"] = reason
        report["version"] = self._version
        report["uptime_seconds"] = round(self._clock.now() - self._started, 3)
        if not detailed:
            report["checks"] = {name: {"status": it.result.status} for name, it in looked.items()}
            return report
        report["checks"] = {name: _members(it, self._stamp(since[name])) for name, it in looked.items()}
        last = self._system.last
        report["system"] = {
            "cpu_percent": last.cpu_percent,
            "memory_percent": last.memory_percent,
            "resident_bytes": last.process_resident,
            "open_fds": last.process_files,
            "threads": last.process_threads,
        }
        return report


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def overall(looked: Mapping[str, Looked]) -> Status:
    """The status of the whole.

    A required check that fails makes it `unhealthy`, and `critical` where no upstream would be called either:
    each one's circuit breaker keeps requests out. Anything else that is not healthy makes it `degraded`.
    """
    if any(required and result.status == "unhealthy" for required, result in looked.values()):
        breakers = [
            "closed" if "mode" in result.facts else result.facts["circuit_breaker"]
            for _, result in looked.values()
            if "circuit_breaker" in result.facts
        ]
        return "critical" if breakers and "closed" not in breakers else "unhealthy"
    if any(result.status != "healthy" for _, result in looked.values()):
        return "degraded"
    return "healthy"


def _members(looked: Looked, since: str) -> dict[str, object]:
    required, result = looked
    members: dict[str, object] = {"status": result.status, "required": required, "since": since}
    if result.latency is not None:
        members["latency_ms"] = round(result.latency * 1000, 3)
    if result.reason:
        members["reason"] = result.reason
    return {**members, **result.facts}

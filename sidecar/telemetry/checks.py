"""What a part of the sidecar registers to be seen in `/health/detailed` and to count in the status.

A check is looked at for every report and scrape, on the event loop: `look` reads what is known and waits for
nothing. What has to be asked is `Polled`: asked now and then beside the traffic, and its last answer is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from sidecar.clock import Clock

Status = Literal["healthy", "degraded", "unhealthy", "critical"]

INTERVAL: Final = 5.0
"""Seconds between two questions of a `Polled`."""
TIMEOUT: Final = 2.0
"""Seconds that it waits for an answer."""
_NONE: Final[Mapping[str, object]] = MappingProxyType({})


class CheckResult(NamedTuple):
    """What one look found."""

    status: Status = "healthy"
    """`unhealthy` counts as a failure where the check is required, as `degraded` where it is not."""
    reason: str = ""
    """Why it is not healthy."""
    latency: float | None = None
    """Seconds that what is checked takes to answer."""
    facts: Mapping[str, object] = _NONE
    """Further members of the report: JSON values, no secrets."""


class Looked(NamedTuple):
    """A check, as it was when it was looked at."""

    required: bool
    result: CheckResult


class Check(Protocol):
    """Something that can fail."""

    @property
    def name(self) -> str:
        """As reports and the label `check` show it. Never from a client: each name is a series."""
        ...

    @property
    def required(self) -> bool:
        """Whether nothing can be served without it: while it is unhealthy, so is the sidecar, and unready."""
        ...

    def look(self) -> CheckResult:
        """What is known. On the event loop: never waits, never raises."""
        ...


class Known(NamedTuple):
    """A check whose result is there already."""

    name: str
    result: CheckResult
    required: bool = False

    def look(self) -> CheckResult:
        return self.result


Checks = Callable[[], Iterable[Check]]
"""Checks whose number is not known beforehand: asked at each report for those there are."""


class AsyncCheck(Protocol):
    """Something that must be asked."""

    @property
    def name(self) -> str: ...

    @property
    def required(self) -> bool: ...

    async def look(self) -> CheckResult:
        """Asks. May wait, and may raise: that is a failure too. Cancelled where it takes too long."""
        ...


class Polled:
    """A check that is asked every `interval` seconds, each time for `timeout` seconds at most."""

    def __init__(
        self, check: AsyncCheck, clock: Clock, *, interval: float = INTERVAL, timeout: float = TIMEOUT
    ) -> None:
        self.name = check.name
        self.required = check.required
        self._check = check
        self._clock = clock
        self._interval = interval
        self._timeout = timeout
        self._last = CheckResult()
        self._task: asyncio.Task[None] | None = None

    def look(self) -> CheckResult:
        """The last answer; healthy before the first."""
        return self._last

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"check {self.name}")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._last = await self._ask()
            await self._clock.sleep(self._interval)

    async def _ask(self) -> CheckResult:
        failed: Status = "unhealthy" if self.required else "degraded"
        before = self._clock.now()
        question = asyncio.ensure_future(self._check.look())
        patience = asyncio.ensure_future(self._clock.sleep(self._timeout))
        try:
            await asyncio.wait((question, patience), return_when=asyncio.FIRST_COMPLETED)
            if not question.done():
                return CheckResult(failed, f"no answer within {self._timeout:g} s")
            result = question.result()
        except Exception as error:  # noqa: BLE001 # whatever it is, a status must not stand still for it
            return CheckResult(failed, str(error) or type(error).__name__)
        finally:
            question.cancel()
            patience.cancel()
        if result.latency is None:
            return result._replace(latency=self._clock.now() - before)
        return result


class Since:
    """When each check took on the status it has, in Unix seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, tuple[Status, float]] = {}

    def note(self, looked: Mapping[str, Looked]) -> dict[str, float]:
        """Takes in what was just seen of all checks; one that is no longer there is forgotten."""
        known = self._known
        now = self._clock.wall()
        self._known = {
            name: it if (it := known.get(name)) is not None and it[0] == status else (status, now)
            for name, status in ((name, it.result.status) for name, it in looked.items())
        }
        return {name: at for name, (_, at) in self._known.items()}

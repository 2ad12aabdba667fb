"""What the metrics counted, as values that can be set side by side: what came in between is a window.

The history keeps a reading every `STEP` seconds for the longest window, whether or not anybody looks: who
opens the dashboard does so because of the last minutes. `/monitoring/performance` and the checks of the
upstreams read the same. A route without traffic shares its reading before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from sidecar.decisions.verdict import Verdict
from sidecar.telemetry.histogram import Histogram

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.metrics import Metrics, RouteCells, UpstreamCells

STEP: Final = 5.0
"""Seconds between two readings that are kept."""
WINDOWS: Final = {"1": 60.0, "5": 300.0, "15": 900.0}
"""Seconds, by minutes."""
SPARK: Final = 60
"""Steps that a sparkline shows."""
_FROM_CACHE: Final = ("hit", "stale", "updating", "revalidated")
_NONE: Final[Mapping[str, int]] = MappingProxyType({})


class RouteFigures(NamedTuple):
    """Of one route, since the start."""

    requests: int = 0
    errors: int = 0
    """Answers of 500 and above."""
    refused: int = 0
    """Answers of 400 to 499."""
    hits: int = 0
    looked_up: int = 0
    """Requests that the cache had a say in."""
    degraded: int = 0
    buckets: tuple[int, ...] = ()
    fallbacks: Mapping[str, int] = _NONE
    shadow: Mapping[str, int] = _NONE

    def since(self, before: RouteFigures) -> RouteFigures:
        if before is self:  # nothing came: most routes of a large configuration, most of the time
            return NO_ROUTE
        return RouteFigures(
            self.requests - before.requests,
            self.errors - before.errors,
            self.refused - before.refused,
            self.hits - before.hits,
            self.looked_up - before.looked_up,
            self.degraded - before.degraded,
            _less(self.buckets, before.buckets),
            _less_by_name(self.fallbacks, before.fallbacks),
            _less_by_name(self.shadow, before.shadow),
        )

    def plus(self, other: RouteFigures) -> RouteFigures:
        """Both together."""
        return RouteFigures(
            self.requests + other.requests,
            self.errors + other.errors,
            self.refused + other.refused,
            self.hits + other.hits,
            self.looked_up + other.looked_up,
            self.degraded + other.degraded,
            _more(self.buckets, other.buckets),
            _more_by_name(self.fallbacks, other.fallbacks),
            _more_by_name(self.shadow, other.shadow),
        )


class UpstreamFigures(NamedTuple):
    """Of one upstream, since the start."""

    verdicts: Mapping[str, int] = _NONE
    buckets: tuple[int, ...] = ()

    def since(self, before: UpstreamFigures) -> UpstreamFigures:
        return UpstreamFigures(
            _less_by_name(self.verdicts, before.verdicts), _less(self.buckets, before.buckets)
        )


class Reading(NamedTuple):
    """All figures of one moment."""

    at: float
    """Monotonic seconds."""
    routes: Mapping[str, RouteFigures]
    upstreams: Mapping[str, UpstreamFigures]


class History:
    """The readings of the last `WINDOWS`, of one process."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self._metrics = metrics
        self._kept: deque[Reading] = deque(maxlen=int(max(WINDOWS.values()) / STEP) + 1)
        self.keep(now)

    def keep(self, now: float) -> None:
        """Takes a reading into the history. To be called every `STEP` seconds."""
        self._kept.append(self.read(now))

    def read(self, now: float) -> Reading:
        """The figures of now."""
        last = self._kept[-1] if self._kept else Reading(now, {}, {})
        return Reading(
            now,
            {name: _same(_route(it), last.routes.get(name)) for name, it in self._metrics.routes.items()},
            {
                name: _same(upstream_figures(it), last.upstreams.get(name))
                for name, it in self._metrics.upstreams.items()
            },
        )

    def before(self, seconds: float, now: float) -> Reading:
        """The reading so long ago, or the first one."""
        for reading in reversed(self._kept):
            if now - reading.at >= seconds - STEP / 2:
                return reading
        return self._kept[0]

    def sparks(self) -> dict[str, tuple[list[int], list[int]]]:
        """Requests, and errors among them, in each of the last `SPARK` steps, by route."""
        kept = list(self._kept)[-SPARK - 1 :]
        return {
            name: (
                [_of(after, name).requests - _of(before, name).requests for before, after in pairwise(kept)],
                [_of(after, name).errors - _of(before, name).errors for before, after in pairwise(kept)],
            )
            for name in kept[-1].routes
        }


class HistoryKeeper:
    """Takes the readings of a history between `start` and `close`."""

    def __init__(self, history: History, clock: Clock) -> None:
        self._history = history
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="history")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(STEP)
            self._history.keep(self._clock.now())


_Figures = TypeVar("_Figures", RouteFigures, UpstreamFigures)
NO_ROUTE: Final = RouteFigures()


def _of(reading: Reading, name: str) -> RouteFigures:
    return reading.routes.get(name, NO_ROUTE)


def _same(figures: _Figures, before: _Figures | None) -> _Figures:
    return before if before is not None and before == figures else figures


def _route(cells: RouteCells) -> RouteFigures:
    requests = errors = refused = 0
    for (_, status), (count,) in cells.requests.items():
        requests += count
        # 0 to 5 are the classes of statuses that the registry does not know.
        kind = status // 100 if status >= 100 else status
        if kind == 5 or not kind:
            errors += count
        elif kind == 4:
            refused += count
    return RouteFigures(
        requests,
        errors,
        refused,
        sum(cells.cache.get(outcome, 0) for outcome in _FROM_CACHE),
        sum(cells.cache.values()),
        sum(cells.degradations.values()),
        tuple(cells.durations.buckets),
        dict(cells.fallbacks),
        dict(cells.shadow_rejections),
    )


def upstream_figures(cells: UpstreamCells) -> UpstreamFigures:
    """What the cells of an upstream hold now."""
    verdicts = {verdict.value: count for verdict, count in cells.attempts().items() if count}
    return UpstreamFigures(verdicts, tuple(Histogram.sum_of(list(cells.durations.values())).buckets))


def _less(after: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
    if not before:
        return tuple(after)
    return tuple(a - b for a, b in zip(after, before, strict=True))


def _more(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    if not one or not other:
        return tuple(one or other)
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _more_by_name(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _less_by_name(after: Mapping[str, int], before: Mapping[str, int]) -> Mapping[str, int]:
    if after == before:
        return _NONE
    counts = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in counts.items() if count}


def window_starts(history: History, reading: Reading) -> dict[str, Reading]:
    """The reading at which each window begins that ends with `reading`."""
    return {name: history.before(seconds, reading.at) for name, seconds in WINDOWS.items()}


def route_windows(
    reading: Reading, starts: Mapping[str, Reading]
) -> Iterator[tuple[str, dict[str, tuple[RouteFigures, float]]]]:
    """Each route, with what came in each window, and how many seconds that window really has.

    Readings do not change: any thread may do this.
    """
    for name, figures in reading.routes.items():
        yield (
            name,
            {
                window: (figures.since(_of(start, name)), max(reading.at - start.at, 1.0))
                for window, start in starts.items()
            },
        )


FAILED: Final = Verdict.TRANSIENT.value
LIMITED: Final = (Verdict.RATE_LIMITED.value, Verdict.QUOTA.value)

"""What workers tell each other of what they have learnt, so that together they act as one would.

All of it is small, sent at most every `PERIOD` but for what opens or closes, and left out where the other
does not keep up: a worker that hears nothing goes on by what it learns itself.

* A breaker that opened opens everywhere, until the same moment; one that closed closes everywhere.
* Requests that a rate limit let through count everywhere. Between two messages a client may have its burst
  from each worker.
* A quota that is used up, and one that is back.
* What was purged, invalidated or replaced in the cache of one is dropped by all.
* Which policies the app calls through the sidecar, and what it may have kept of fallbacks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from sidecar.decisions.breaker import Breaker, State, Transition
from sidecar.decisions.gcra import Buckets
from sidecar.stores.purge_log import Purged

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.data_plane import DataPlane
    from sidecar.telemetry.metrics import BreakerCells

PERIOD: Final = 0.05
"""Seconds between two messages about what adds up."""
MOST_CLIENTS: Final = 2000
"""Clients that a message names; those beyond are not told of."""
MOST_PURGED: Final = 1000
"""Keys that a message names; a purge of more is told in several."""

Tell = Callable[..., None]
"""Sends a hint: its name and values."""


class TellingBuckets(Buckets):
    """Buckets that remember who was let through since the last message."""

    __slots__ = ("__weakref__", "let_through")

    def __init__(self, rate: float, burst: int) -> None:
        super().__init__(rate, burst)
        self.let_through: dict[str | bytes, int] = {}

    def take(self, client: str | bytes, now: float) -> float:
        ahead = super().take(client, now)
        if ahead > 0:
            told = self.let_through
            told[client] = told.get(client, 0) + 1
        return ahead


class Hints:
    """Of one process: what it tells, and what it makes of what it hears."""

    def __init__(self, clock: Clock, tell: Tell) -> None:
        self._clock = clock
        self._tell = tell
        self._plane: DataPlane | None = None
        self._buckets: WeakValueDictionary[str, TellingBuckets] = WeakValueDictionary()
        """Those that a generation in use has."""
        self._held: dict[str, float | None] = {}
        self._task: asyncio.Task[None] | None = None

    def of(self, plane: DataPlane) -> None:
        """Whose state it is about."""
        self._plane = plane
        plane.caching.store.on_purge = self._purged

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="hints")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- telling -------------------------------------------------------------------------------

    def buckets(self, name: str, rate: float, burst: int) -> Buckets:
        """Buckets whose counts are told under `name`, which is the same in all processes."""
        made = self._buckets[name] = TellingBuckets(rate, burst)
        return made

    def watch(self, label: str, cells: BreakerCells) -> None:
        """Tells when the breaker that is shown under `label` opens or closes."""

        def told(breaker: Breaker, transition: Transition) -> None:
            if transition.target is not State.HALF_OPEN and transition.reason.value != "forced":
                until = transition.at + breaker.retry_after(transition.at)
                self._tell("breaker", label, transition.target, until, breaker.open_for)

        cells.tell = told

    def _purged(self, kind: Purged, values: Sequence[bytes]) -> None:
        for start in range(0, len(values), MOST_PURGED):
            self._tell("purged", kind, tuple(values[start : start + MOST_PURGED]))

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(PERIOD)
            self.flush()

    def flush(self) -> None:
        """Tells what has added up."""
        for name, buckets in list(self._buckets.items()):
            told = buckets.let_through
            if told:
                buckets.let_through = {}
                if len(told) > MOST_CLIENTS:
                    told = dict(list(told.items())[:MOST_CLIENTS])
                self._tell("taken", name, told)
        assert self._plane is not None
        for label, turns in self._plane.services.state.paced():
            until = turns.pacer.hold.until
            if self._held.get(label) != until:
                self._held[label] = until
                self._tell("held", label, until)

    # -- hearing -------------------------------------------------------------------------------

    def handlers(self) -> dict[str, Callable[..., Any]]:
        return {
            "breaker": self.hear_breaker,
            "taken": self.hear_taken,
            "held": self.hear_held,
            "purged": self.hear_purged,
            "seen": self.hear_seen,
            "kept": self.hear_kept,
            "unkept": self.hear_unkept,
        }

    def hear_breaker(self, label: str, state: State, until: float, open_for: float) -> None:
        assert self._plane is not None
        cells = self._plane.metrics.breakers.get(label)
        if cells is not None:
            cells.look()
            cells.breaker.told(state, until, open_for, self._clock.now())
            cells.look()

    def hear_taken(self, name: str, told: dict[str | bytes, int]) -> None:
        buckets = self._buckets.get(name)
        if buckets is not None:
            now = self._clock.now()
            for client, count in told.items():
                buckets.charge(client, count, now)

    def hear_held(self, label: str, until: float | None) -> None:
        assert self._plane is not None
        for name, turns in self._plane.services.state.paced():
            if name == label:
                turns.pacer.hold.told(until)
                self._held[label] = turns.pacer.hold.until
                turns.serve()

    def hear_purged(self, kind: Purged, values: Sequence[bytes]) -> None:
        assert self._plane is not None
        caching = self._plane.caching
        for prefix in values if kind is Purged.KEY else (b"",):
            caching.fills.forget(prefix)
        caching.store.hear(kind, values)

    def hear_seen(self, policy: str) -> None:
        assert self._plane is not None
        self._plane.services.overlaps.seen.add(policy)

    def hear_kept(self, policy: str, asked: bytes, until: float) -> None:
        assert self._plane is not None
        self._plane.services.overlaps.hear_kept(policy, asked, until)

    def hear_unkept(self, policy: str, asked: bytes) -> None:
        assert self._plane is not None
        self._plane.services.overlaps.drop(policy, asked)

"""The faults in force: who set them, for which routes, and when they end.

A route's pipeline asks one slot, once per attempt; while no fault is in force there, that is all a fault
costs. A fault that has ended stays so: one from a policy file is counted from when it was first seen, and
a reload that does not change it does not bring it back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from sidecar.decisions.fault_plan import FaultPlan
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sidecar.clock import Clock
    from sidecar.config.schema import Fault

Kind = Literal["route", "upstream"]
Scope = tuple[Kind, str]

InForce = tuple[Scope, "Fault", Literal["policy", "admin"], float | None]
"""Where, what, who set it, and until when (`Clock.now()`)."""

KINDS: Final = ("delay", "respond", "reset", "truncate", "bandwidth")
LONGEST: Final = 3600.0
"""Seconds for which a fault may be set at run time: whoever set it may be gone before it ends."""


class ActiveFault:
    """One fault in force."""

    __slots__ = ("kinds", "plan", "settings", "source", "until")

    def __init__(self, settings: Fault, source: Literal["policy", "admin"], now: float, wall: float) -> None:
        """`now` by `Clock.now()`, `wall` in Unix seconds: when it is activated."""
        delay = settings.delay
        self.settings = settings
        self.source = source
        self.plan = FaultPlan(
            settings.percent,
            settings.every,
            settings.first,
            None if delay is None else (delay.min, delay.max),
        )
        self.kinds = tuple(name for name in KINDS if getattr(settings, name))
        """What it does, by the names of the settings."""
        self.until: float | None = None
        """`Clock.now()` at which it ends; None: it does not by itself."""
        if settings.expires is not None:
            after, at = settings.expires
            self.until = now + (after if after is not None else (at or wall) - wall)

    def told(self, delay: float) -> str:
        """What the trail says of an attempt that it hits and holds up for `delay` seconds."""
        settings = self.settings
        values = {
            "delay": f"delay={delay:.3f}",
            "respond": f"respond={settings.respond.status if settings.respond is not None else 0}",
            "truncate": f"truncate={settings.truncate}",
            "bandwidth": f"bandwidth={settings.bandwidth}",
        }
        return ";".join(values.get(kind, kind) for kind in self.kinds)

    def ended(self, now: float) -> bool:
        return (self.until is not None and now >= self.until) or self.plan.over


class Slot:
    """What the pipeline of a route looks at: the faults that may hit its attempts; None: there are none."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active: tuple[ActiveFault, ...] | None = None


class Faults:
    """All faults of a process. Those of a route go before those of its upstream."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._slots: dict[tuple[str, str], Slot] = {}
        """By route and upstream: a route of a file with several hosts has as many."""
        self._alternates: set[tuple[str, str]] = set()
        """Those of upstreams that only a fallback asks: a fault of the route is none of theirs."""
        self._declared: dict[tuple[str, str], Fault | None] = {}
        """What the policy file says of the route."""
        self._active: dict[Scope, ActiveFault] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = get_logger("sidecar.fault")
        self.on_order: Callable[[], object] = lambda: None
        """Called when an operator has set or ended one."""

    # -- the pipeline's side -------------------------------------------------------------------

    def slot(self, route: str, upstream: str, declared: Fault | None, *, alternate: bool = False) -> Slot:
        """The slot of a route. `declared`, the fault of its policy file, is activated when it is new.

        `alternate`: of another upstream, which the route's fallback asks.
        """
        place = route, upstream
        slot = self._slots.setdefault(place, Slot())
        if alternate:
            self._alternates.add(place)
        elif self._declared.get(place) != declared:
            self._declare(route, declared)
            self._declared[place] = declared
        self._arrange()
        return slot

    def _declare(self, route: str, declared: Fault | None) -> None:
        known = [fault for (name, _), fault in self._declared.items() if name == route]
        if declared in known:  # by way of another upstream of the same file
            return
        scope: Scope = ("route", route)
        before = self._active.get(scope)
        if declared is not None:
            self._active[scope] = self._new(declared, "policy")
        elif before is not None and before.source == "policy":
            del self._active[scope]

    def keep(self, task: asyncio.Task[None]) -> None:
        """Holds a task that feeds a body until it is through."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def sweep(self, now: float) -> None:
        """Ends what is over. Called about once a second, and by whoever meets a fault that is."""
        ended = [scope for scope, fault in self._active.items() if fault.ended(now)]
        for scope in ended:
            fault = self._active.pop(scope)
            self._log.info(
                "fault ended", **{scope[0]: scope[1]}, source=fault.source, injected=fault.plan.hit
            )
        if ended:
            self._arrange()

    async def close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- the operator's side -------------------------------------------------------------------

    def set(self, kind: Kind, name: str, settings: Fault) -> None:
        """Puts a fault in the place of any other there. It must end, within `LONGEST` seconds.

        Raises ValueError, in words for whoever asked.
        """
        self._must_know(kind, name)
        fault = self._new(settings, "admin")
        left = self._left(fault)
        if left is None:
            raise ValueError('expires: when does it end? (add for example "expires": "5m")')
        if left <= 0:
            raise ValueError("expires: that is over already")
        if left > LONGEST:
            most = f"{LONGEST / 60:g} minutes"
            raise ValueError(f"expires: a fault is set for {most} at most (set it again when it has ended)")
        self._active[(kind, name)] = fault
        self._arrange()
        self.on_order()

    def clear(self, kind: Kind | None = None, name: str = "") -> int:
        """Ends the fault there, or all without `kind`; how many there were. Raises ValueError."""
        if kind is None:
            count = len(self._active)
            self._active.clear()
        else:
            self._must_know(kind, name)
            count = int(self._active.pop((kind, name), None) is not None)
        self._arrange()
        self.on_order()
        return count

    def in_force(self) -> list[InForce]:
        """All faults, for another process to `adopt`."""
        return [(scope, fault.settings, fault.source, fault.until) for scope, fault in self._active.items()]

    def adopt(self, rows: Iterable[InForce]) -> None:
        """These are in force, and no others. One that is here already goes on as it is."""
        before, self._active = self._active, {}
        for scope, settings, source, until in rows:
            fault = before.get(scope)
            same = fault is not None and (fault.settings, fault.source) == (settings, source)
            if fault is None or not same or (source == "admin" and fault.until != until):
                fault = self._new(settings, source)
            fault.until = until
            self._active[scope] = fault
        self._arrange()

    def listed(self) -> list[dict[str, object]]:
        """The faults in force, as plain values."""
        self.sweep(self._clock.now())
        return [
            {
                kind: name,
                "source": fault.source,
                "fault": fault.settings.model_dump(mode="json", exclude_unset=True),
                "expires_in_seconds": self._left(fault),
                "attempts": fault.plan.asked,
                "injected": fault.plan.hit,
            }
            for (kind, name), fault in self._active.items()
        ]

    def scopes(self) -> list[str]:
        """Where faults are in force, in words."""
        self.sweep(self._clock.now())
        return [f"{kind} {name}" for kind, name in self._active]

    # -- inside --------------------------------------------------------------------------------

    def _new(self, settings: Fault, source: Literal["policy", "admin"]) -> ActiveFault:
        return ActiveFault(settings, source, self._clock.now(), self._clock.wall())

    def _left(self, fault: ActiveFault) -> float | None:
        return None if fault.until is None else round(fault.until - self._clock.now(), 3)

    def _must_know(self, kind: Kind, name: str) -> None:
        known = [route if kind == "route" else upstream for route, upstream in self._slots]
        if name not in known:
            there = ", ".join(sorted(set(known)))
            raise ValueError(f'there is no {kind} "{name}" (there are {there})')

    def _arrange(self) -> None:
        """Tells each slot what is in force there."""
        for (route, upstream), slot in self._slots.items():
            slot.active = tuple(self._of(route, upstream)) or None

    def _of(self, route: str, upstream: str) -> Iterator[ActiveFault]:
        scopes: tuple[Scope, ...] = (("route", route), ("upstream", upstream))
        for scope in scopes[1:] if (route, upstream) in self._alternates else scopes:
            fault = self._active.get(scope)
            if fault is not None:
                yield fault

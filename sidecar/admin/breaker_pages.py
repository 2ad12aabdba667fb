"""What the admin listener says and does about circuit breakers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from aiohttp import web

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import COUNT, TEXT, Route, Schema, audit, in_json, ordering, problem, showing
from sidecar.config.breaker_order import BreakerOrder, read_breaker_order
from sidecar.config.problems import listed
from sidecar.decisions.breaker import State, Transition
from sidecar.telemetry.stamp import Stamp

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.telemetry.metrics import BreakerCells, Metrics

BREAKERS: Final = "/admin/breakers"

_BREAKER: Final[Schema] = {
    "type": "object",
    "required": ["breaker", "state", "mode", "transitions"],
    "properties": {
        "breaker": {**TEXT, "description": "An upstream, or a route of one where a policy is scoped so."},
        "state": {"type": "string", "enum": ["closed", "half_open", "open"]},
        "mode": {
            "type": "string",
            "enum": ["enforce", "shadow"],
            "description": "In shadow it refuses nothing.",
        },
        "transitions": {**COUNT, "description": "Since the start."},
        "since": {"type": "string", "format": "date-time", "description": "Of the last transition."},
        "cause": {"type": "string", "description": "Of the last transition."},
        "retry_after_seconds": {"type": "number"},
        "forced": {
            "type": "object",
            "description": "It is overruled by an operator.",
            "required": ["state", "reason", "client", "expires_in_seconds"],
            "properties": {
                "state": {"type": "string", "enum": ["closed", "open"]},
                "reason": TEXT,
                "client": TEXT,
                "expires_in_seconds": {"type": "number"},
            },
        },
    },
}
_LIST: Final[Schema] = {
    "type": "object",
    "required": ["breakers"],
    "properties": {"breakers": {"type": "array", "items": _BREAKER}},
}
_ORDER: Final[Schema] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["breaker", "action", "reason"],
    "properties": {
        "breaker": TEXT,
        "action": {
            "type": "string",
            "enum": ["force_open", "force_close", "reset"],
            "description": "Reset ends an override and what was measured: closed, afresh.",
        },
        "reason": {**TEXT, "maxLength": 200},
        "expires": {**TEXT, "description": "A duration, a day at most; not with reset."},
    },
}


class _Override(NamedTuple):
    """What an operator made of a breaker; over when another transition has followed, or the time is up."""

    transition: Transition | None
    state: State
    until: float
    reason: str
    client: str


class Breakers:
    """The breakers of one process, looked at and overruled from outside."""

    def __init__(
        self,
        metrics: Metrics,
        clock: Clock,
        on_force: Callable[[str, State, float, float], None] | None = None,
    ) -> None:
        """`on_force` hears of what an operator does: breaker, state, until, and when (`Clock.now()`)."""
        self._metrics = metrics
        self._clock = clock
        self._on_force = on_force
        self._stamp = Stamp()
        self._overrides: dict[str, _Override] = {}

    def listed(self) -> list[dict[str, object]]:
        """Plain values, ready for JSON."""
        return [self._told(name, cells) for name, cells in sorted(self._metrics.breakers.items())]

    def act(self, asked: BreakerOrder, client: str) -> None:
        """Overrules a breaker, or ends that. Raises ValueError, in words for whoever asked."""
        cells = self._metrics.breakers.get(asked.breaker)
        if cells is None:
            there = listed(sorted(self._metrics.breakers), "and")
            raise ValueError(
                f'breaker: there is none called "{asked.breaker}" (there are {there or "none at all"})'
            )
        now = self._clock.now()
        until = now + (asked.expires or 0.0)
        state = State.OPEN if asked.action == "force_open" else State.CLOSED
        cells.look()
        # A reset is to have been forced closed for no time at all: it starts afresh.
        cells.breaker.force(state, until, now)
        cells.look()
        if self._on_force is not None:
            self._on_force(asked.breaker, state, until, now)
        self._overrides.pop(asked.breaker, None)
        if asked.action != "reset":
            self._overrides[asked.breaker] = _Override(cells.breaker.last, state, until, asked.reason, client)

    def forced(self) -> dict[str, tuple[State, float]]:
        """What operators have forced still: the state, and until when."""
        now = self._clock.now()
        return {
            name: (it.state, it.until)
            for name, it in self._overrides.items()
            if name in self._metrics.breakers and now < it.until
        }

    def _told(self, name: str, cells: BreakerCells) -> dict[str, object]:
        breaker, now = cells.breaker, self._clock.now()
        told: dict[str, object] = {
            "breaker": name,
            "state": breaker.state(now).value,
            "mode": cells.mode,
            "transitions": breaker.transitions,
        }
        last = breaker.last
        if last is not None:
            told["since"] = self._stamp(self._clock.wall() - (now - last.at))
            told["cause"] = last.reason.value
        if wait := breaker.retry_after(now):
            told["retry_after_seconds"] = round(wait, 3)
        override = self._overrides.get(name)
        if override is not None:
            if _still(override.transition, last) and now < override.until:
                told["forced"] = {
                    "state": override.state.value,
                    "reason": override.reason,
                    "client": override.client,
                    "expires_in_seconds": round(override.until - now, 3),
                }
            else:
                del self._overrides[name]
        return told


def _still(forced: Transition | None, last: Transition | None) -> bool:
    """Whether nothing has followed on being forced. What other processes tell may be a second old."""
    if forced is None or last is None or last.at < forced.at:
        return True
    return (last.at, last.target, last.reason) == (forced.at, forced.target, forced.reason)


class BreakerPages:
    """The pages about the breakers of one process."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def routes(self) -> Iterator[Route]:
        answer = in_json("All breakers, as they are now.", _LIST)
        yield showing(BREAKERS, self._list, "The circuit breakers.", {"200": answer})
        yield ordering(
            BREAKERS,
            self._act,
            "Forces a breaker open or closed for a time, or resets it.",
            _ORDER,
            {"200": answer, "404": problem("There is no such breaker.")},
        )

    def _list(self, _: str) -> Page:
        return json_page({"breakers": self._breakers.listed()})

    async def _act(self, request: web.Request) -> Page:
        try:
            asked = read_breaker_order(await request.read())
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        audit(request, "circuit breaker overruled", **asked.model_dump(mode="json", exclude_none=True))
        try:
            self._breakers.act(asked, request.remote or "unix")
        except ValueError as error:
            return problem_page(404, "Not Found", str(error))
        return self._list("")

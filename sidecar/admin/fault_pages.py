"""What the admin listener says and does about injected faults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, Protocol

from aiohttp import web

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.admin.route import COUNT, TEXT, Route, Schema, audit, in_json, ordering, problem, showing
from sidecar.config.fault_order import read_order

if TYPE_CHECKING:
    from sidecar.config.fault_policy import Fault

FAULTS: Final = "/admin/faults"
_FAULT: Final[Schema] = {
    "type": "object",
    "required": ["source", "fault", "expires_in_seconds", "attempts", "injected"],
    "properties": {
        "route": TEXT,
        "upstream": TEXT,
        "source": {"type": "string", "enum": ["policy", "admin"]},
        "fault": {"type": "object", "description": "Its keys, as in a policy file."},
        "expires_in_seconds": {"type": ["number", "null"]},
        "attempts": {**COUNT, "description": "Attempts since it was set."},
        "injected": {**COUNT, "description": "Of these, the ones that it hit."},
    },
}
_FAULTS: Final[Schema] = {
    "type": "object",
    "required": ["faults"],
    "properties": {"faults": {"type": "array", "items": _FAULT}, "cleared": COUNT},
}
_FAULT_ORDER: Final[Schema] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["fault"],
    "properties": {
        "route": TEXT,
        "upstream": TEXT,
        "fault": {
            "anyOf": [{"type": "object"}, {"type": "null"}, {"const": "off"}],
            "description": "The keys of a policy file's fault; null or off ends what is there.",
        },
        "expires": {**TEXT, "description": "A duration or a time, within an hour."},
    },
}


class FaultControl(Protocol):
    """What can be seen of the faults in force, and done about them."""

    def listed(self) -> list[dict[str, object]]:
        """Plain values, ready for JSON."""
        ...

    def set(self, kind: Literal["route", "upstream"], name: str, settings: Fault) -> None:
        """Raises ValueError, in words for whoever asked: there is no such place, or no end to the fault."""
        ...

    def clear(self, kind: Literal["route", "upstream"] | None = None, name: str = "") -> int:
        """Ends the fault there, or all; how many there were. Raises ValueError for what is not known."""
        ...


class FaultPages:
    """The pages about the faults of one process; None: it has no data plane."""

    def __init__(self, faults: FaultControl | None, *, production: bool) -> None:
        self._faults = faults
        self._production = production

    def routes(self) -> Iterator[Route]:
        answer = in_json("What is in force.", _FAULTS)
        yield showing(FAULTS, self._list, "The injected faults in force.", {"200": answer})
        yield ordering(
            FAULTS,
            self._act,
            "Injects a fault into attempts of a route or an upstream, or ends one.",
            _FAULT_ORDER,
            {
                "200": answer,
                "403": problem("It comes from a page of another site, or this is production."),
                "409": problem("There are no routes."),
            },
        )

    def _list(self, _: str) -> Page:
        return json_page({"faults": [] if self._faults is None else self._faults.listed()})

    async def _act(self, request: web.Request) -> Page:
        faults = self._faults
        try:
            kind, name, fault = read_order(await request.read())
            where = {} if kind is None else {kind: name}
            if faults is None:
                return problem_page(409, "Conflict", "there are no routes to inject faults into")
            if fault is None:
                count = faults.clear(kind, name)
                audit(request, "fault cleared", cleared=count, **where)
                return json_page({"cleared": count, "faults": faults.listed()})
            if self._production:
                audit(request, "fault refused", reason="production", **where)
                return problem_page(403, "Forbidden", "no faults are injected in production")
            assert kind is not None
            faults.set(kind, name, fault)
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        audit(request, "fault set", fault=fault.model_dump(mode="json", exclude_unset=True), **where)
        return json_page({"faults": faults.listed()})

"""What the admin listener says and does about injected faults, as values: any listener can serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol

from sidecar.admin.page import Page, json_page, problem_page
from sidecar.config.fault_order import read_order
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from sidecar.config.fault_policy import Fault

FAULTS: Final = "/admin/faults"


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
        self._log = get_logger("sidecar.admin")

    def list(self) -> Page:
        return json_page({"faults": [] if self._faults is None else self._faults.listed()})

    def act(self, body: bytes, client: str) -> Page:
        """The answer to a POST. `client` is the address that it came from, for the log."""
        faults = self._faults
        try:
            kind, name, fault = read_order(body)
            where = {} if kind is None else {kind: name}
            if faults is None:
                return problem_page(409, "Conflict", "there are no routes to inject faults into")
            if fault is None:
                count = faults.clear(kind, name)
                self._log.warning("fault cleared", client=client, cleared=count, **where)
                return json_page({"cleared": count, "faults": faults.listed()})
            if self._production:
                self._log.warning("fault refused", client=client, reason="production", **where)
                return problem_page(403, "Forbidden", "no faults are injected in production")
            assert kind is not None
            faults.set(kind, name, fault)
        except ValueError as error:
            return problem_page(400, "Bad Request", str(error))
        shown = fault.model_dump(mode="json", exclude_unset=True)
        self._log.warning("fault set", client=client, fault=shown, **where)
        return json_page({"faults": faults.listed()})

"""A fault as it is ordered at run time: the keys of the YAML, in JSON."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from sidecar.config.base import Model, setting
from sidecar.config.fault_lint import findings
from sidecar.config.fault_policy import Expires, Fault
from sidecar.config.order import members
from sidecar.config.order import order as read_as

EXAMPLE: Final = (
    'send for example {"route": "geocode", "fault": {"percent": "20%", "delay": "2s"}, "expires": "5m"}'
)


class _Order(Model):
    """What a body may hold."""

    route: str | None = setting(None, "The route whose attempts are hit.", "geocode")
    upstream: str | None = setting(None, "The upstream whose attempts are hit, by whatever route.", "app")
    fault: Fault | None = setting(None, "The fault; `off` or null ends the one that is there.")
    expires: Expires | None = setting(None, "When it ends; may also stand in the fault.", "5m")


class Order(NamedTuple):
    """What is to be done, and where."""

    kind: Literal["route", "upstream"] | None
    """None: everywhere."""
    name: str
    fault: Fault | None
    """None: end what is there."""


def read_order(body: bytes) -> Order:
    """The order in a JSON body. Raises ValueError with all that is wrong, in words for whoever asked."""
    asked = members(body, EXAMPLE)
    if "fault" not in asked:
        raise ValueError(f"fault: it is missing ({EXAMPLE})")
    order = read_as(asked, _Order)
    if order.route is not None and order.upstream is not None:
        raise ValueError("name a route or an upstream, not both")
    fault = order.fault
    if fault is not None:
        fault = _complete(fault, order)
    if order.route is not None:
        return Order("route", order.route, fault)
    if order.upstream is not None:
        return Order("upstream", order.upstream, fault)
    if fault is not None:
        raise ValueError(f"where? name a route or an upstream ({EXAMPLE})")
    return Order(None, "", None)


def _complete(fault: Fault, order: _Order) -> Fault:
    if order.expires is not None:
        if fault.expires is not None:
            raise ValueError("expires is there twice: beside the fault, and in it")
        fault = fault.model_copy(update={"expires": order.expires})
    found = [f"fault.{key}: {text}" if key else f"fault {text}" for _, key, text in findings(fault)]
    if found:
        raise ValueError("; ".join(found))
    return fault

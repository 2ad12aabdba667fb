"""Which of three classes a request belongs to: who goes first where there is not enough for all.

The class is the route's. The request's own `Priority` field (RFC 9218, 5) may come from anybody, so it can
only lower it: urgency 5 to 7 (4.1; 3 is the default, 7 is for background tasks) makes the request LOW.
Nothing that a client sends raises it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from sidecar.decisions.structured_fields import parse_dictionary

if TYPE_CHECKING:
    from sidecar.headers import Line


class Priority(IntEnum):
    """Smaller goes first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


BACKGROUND: Final = 5
"""The urgency from which on a request counts as LOW."""
LEAST_URGENT: Final = 7


def priority_of(headers: Sequence[Line], default: Priority) -> Priority:
    """The class of a request on a route whose class is `default`.

    A field that does not parse, or whose urgency is not 0 to 7 (RFC 9218, 4 and 4.1), says nothing.
    """
    values = [line.value for line in headers if line.name == b"priority"]
    if not values or default is Priority.LOW:
        return default
    fields = parse_dictionary(b", ".join(values))
    urgency = fields.get("u") if fields is not None else None
    if type(urgency) is int and BACKGROUND <= urgency <= LEAST_URGENT:
        return Priority.LOW
    return default

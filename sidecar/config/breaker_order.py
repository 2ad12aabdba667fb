"""What may be ordered of a circuit breaker at run time."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from annotated_types import Len

from sidecar.config.base import Model, required, setting
from sidecar.config.order import bounded, members, order
from sidecar.config.units import Duration

Action = Literal["force_open", "force_close", "reset"]

EXAMPLE: Final = (
    'send for example {"breaker": "google-maps", "action": "force_open", "reason": "their maintenance", '
    '"expires": "10m"}'
)


class BreakerOrder(Model):
    """The body."""

    breaker: str = required("Its name, as GET lists it.", "google-maps")
    action: Action = required(
        "`force_open` lets nothing through, `force_close` lets all through and counts nothing, `reset` ends "
        "either and starts afresh, closed.",
        "force_open",
    )
    reason: Annotated[str, Len(1, 200)] = required(
        "Why, for those who wonder later.", "the provider's maintenance"
    )
    expires: Duration | None = setting(
        None, "How long it lasts, a day at most; then the breaker judges for itself again.", "10m"
    )


def read_breaker_order(body: bytes) -> BreakerOrder:
    """The order in a JSON body. Raises ValueError with all that is wrong, in words for whoever asked."""
    asked = order(members(body, EXAMPLE), BreakerOrder)
    at_once = "a reset is over at once" if asked.action == "reset" else ""
    bounded(
        asked.reason,
        asked.expires,
        at_once=at_once,
        lasting="set it again when it has ended",
        example=EXAMPLE,
    )
    return asked

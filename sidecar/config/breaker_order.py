"""What may be ordered of a circuit breaker at run time."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from annotated_types import Len

from sidecar.config.base import Model, required, setting
from sidecar.config.order import members, order
from sidecar.config.units import Duration

Action = Literal["force_open", "force_close", "reset"]

EXAMPLE: Final = (
    'send for example {"breaker": "google-maps", "action": "force_open", "reason": "their maintenance", '
    '"expires": "10m"}'
)
LONGEST: Final = 86400.0
"""Seconds that a breaker may be overruled at a time: what nobody remembers must end by itself."""


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
    if not asked.reason.strip() or not asked.reason.isprintable():
        raise ValueError(f"reason: say why, in one line of text ({EXAMPLE})")
    if asked.action == "reset":
        if asked.expires is not None:
            raise ValueError("expires: a reset is over at once (leave it out)")
        return asked
    if asked.expires is None:
        raise ValueError('expires: when does it end? (add for example "expires": "10m")')
    if asked.expires > LONGEST:
        raise ValueError(f"expires: {LONGEST / 3600:g} hours at most (set it again when it has ended)")
    return asked

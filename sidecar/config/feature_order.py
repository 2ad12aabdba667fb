"""What may be ordered of feature flags at run time."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from annotated_types import Len

from sidecar.config.base import Model, required, setting
from sidecar.config.order import bounded, members, order
from sidecar.config.units import Duration, Switch

EXAMPLE: Final = (
    'send for example {"feature": "cache", "on": false, "reason": "stale answers", "expires": "10m"}'
)


class FeatureOrder(Model):
    """The body."""

    feature: str = required("Its name, as GET lists it.", "cache")
    on: Switch | Literal["configured"] = required(
        "Switched on or off; `configured`: as the files say again.", False
    )
    reason: Annotated[str, Len(1, 200)] = required("Why, for those who wonder later.", "stale answers")
    expires: Duration | None = setting(
        None, "How long it lasts, a day at most; then it is as the files say again.", "10m"
    )


def read_feature_order(body: bytes) -> FeatureOrder:
    """The order in a JSON body. Raises ValueError with all that is wrong, in words for whoever asked."""
    asked = order(members(body, EXAMPLE), FeatureOrder)
    at_once = "that is over at once" if asked.on == "configured" else ""
    bounded(asked.reason, asked.expires, at_once=at_once, lasting="write it into the files", example=EXAMPLE)
    return asked

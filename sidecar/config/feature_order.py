"""What may be ordered of feature flags at run time."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from annotated_types import Len

from sidecar.config.base import Model, required, setting
from sidecar.config.order import members, order
from sidecar.config.units import Duration, Switch

EXAMPLE: Final = (
    'send for example {"feature": "cache", "on": false, "reason": "stale answers", "expires": "10m"}'
)
LONGEST: Final = 86400.0
"""Seconds for which a feature may be switched at a time: what is to last belongs into the files."""


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
    if not asked.reason.strip() or not asked.reason.isprintable():
        raise ValueError(f"reason: say why, in one line of text ({EXAMPLE})")
    if asked.on == "configured":
        if asked.expires is not None:
            raise ValueError("expires: that is over at once (leave it out)")
        return asked
    if asked.expires is None:
        raise ValueError('expires: when does it end? (add for example "expires": "10m")')
    if asked.expires > LONGEST:
        raise ValueError(f"expires: {LONGEST / 3600:g} hours at most (write it into the files)")
    return asked

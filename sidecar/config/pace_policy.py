"""The model of `pace` in a policy file."""

from __future__ import annotations

from typing import Literal

from sidecar.config.base import Mode, Model, mode, setting
from sidecar.config.units import Count, Duration, Rate, Switch


class Pace(Model):
    """Keeps to the quota of a provider, as its answers teach it; routes with the same `rate`, `burst`,
    `learn` and `hold` share what is learnt of an upstream.
    """

    rate: Rate | None = setting(
        None,
        "The rate to begin with, until the provider states its quota or refuses something. Absent: "
        "no limit until then.",
        "50/s",
        "60/m",
    )
    burst: Count = setting(
        1,
        "Requests that may go at once after a rest, where the rate is all that is known; batch requests "
        "leave it to the others.",
        10,
    )
    learn: Switch = setting(
        True,
        "Whether the quota is learnt, from `RateLimit`, `X-RateLimit-*` and OpenAI's fields, or from "
        "refusals. `false`: the rate stays as it is.",
        False,
    )
    patience: Duration = setting(
        "10s",
        "How long a request may wait for its turn; one that would wait longer is refused at once.",
        "5s",
    )
    batch_patience: Duration = setting("5m", "The same for batch requests, those of low priority.", "30m")
    hold: Duration | None = setting(
        "60s",
        "After a `quota` verdict nothing is sent until the provider's reset, or for this long where it "
        "states none; then a single request probes. `off`: nothing is held.",
        "5m",
    )
    priority: Literal["high", "normal", "low"] | None = setting(
        None,
        "Class of the route's requests: `low` is batch, the others are interactive. A request's own "
        "`Priority: u=5` to `u=7` makes it low. Absent: that of `concurrency_limit`.",
        "low",
    )
    mode: Mode = mode()

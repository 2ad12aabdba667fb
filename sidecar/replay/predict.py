"""A log and configurations, to figures beside one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from sidecar.config.load import Loaded
from sidecar.replay.figures import Figures, as_logged
from sidecar.replay.log import Log
from sidecar.replay.recorded import Recorded
from sidecar.replay.run import homes_of, simulate
from sidecar.replay.virtual_time import run


def predict(
    log: Log, configurations: Sequence[tuple[str, Loaded]], latency: float, prices: Mapping[str, float]
) -> list[Figures]:
    """What the log itself tells, then what it would have come to under each configuration, by its name.

    The first is taken for the one that the log was written under: by it the freshness that an origin stated
    is told from that of a policy. `latency`: seconds of an attempt where the log does not say; `prices` of a
    call, by route, go before those of the policies.
    """
    _, first = configurations[0]
    routes = {route.name: route for policy in first.policies for route in policy.routes}
    homes = homes_of(first)
    recorded = Recorded(log.lines, routes, homes, latency)

    def price(name: str) -> float:
        route = routes.get(name)
        return prices.get(name, (route.price or 0.0) if route is not None else 0.0)

    return [
        as_logged(log, price),
        *(
            run(
                partial(
                    simulate,
                    name=name,
                    loaded=loaded,
                    lines=log.lines,
                    recorded=recorded,
                    homes=homes,
                    latency=latency,
                    prices=prices,
                )
            )
            for name, loaded in configurations
        ),
    ]

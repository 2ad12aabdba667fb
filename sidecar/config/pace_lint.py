"""Settings of `pace` that make no sense together."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.config.pace_policy import Pace
from sidecar.config.place import Place
from sidecar.config.policy import Route
from sidecar.config.problems import Problem


def route(settings: Route, pace: Pace, place: Place) -> Iterator[Problem]:
    if pace.rate is None and not pace.learn and pace.hold is None:
        yield place.error(
            "pace", "nothing is ever paced or held (give a rate, leave learn or hold on, or write off)"
        )
    if not pace.learn and pace.rate is None and place.written("pace.burst"):
        yield place.error("pace.burst", "there is no rate to exceed (give a rate, or remove it)")
    if settings.deadline is None:
        return
    for key, patience in (("patience", pace.patience), ("batch_patience", pace.batch_patience)):
        if place.written(f"pace.{key}") and patience >= settings.deadline:
            yield place.error(
                f"pace.{key}",
                f"{place.time(f'pace.{key}', patience)} of waiting leaves nothing of the deadline of "
                f"{place.time('deadline', settings.deadline)} (write a shorter one)",
            )

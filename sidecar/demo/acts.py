"""What happens in the demo, act by act: the traffic, what breaks, and what the sidecar says it did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from sidecar.demo.load import Call, Clients, Measured, Payloads, arrive

if TYPE_CHECKING:
    from sidecar.demo.processes import Stage

RATE = 100.0
"""Requests a second to each side."""
CACHED = "matching-asked-again"
"""The route of the app's clients that has a cache; the app's own calls have theirs."""

Prepare = Callable[["Stage", list[Call]], Awaitable[list[Call]]]
"""Sets the scene for these calls; returns them with their truths."""
Script = Callable[["Stage"], Awaitable[str]]
"""Breaks things while the traffic flows; returns what there is to say about it."""


@dataclass(frozen=True, slots=True)
class Act:
    title: str
    seconds: float
    patience: float
    """Seconds after which a client gives up."""
    script: Script
    traffic: Callable[[Payloads, int], Call] = Payloads.matching
    until_closed: bool = False
    """Goes on, after the traffic, until the sidecar's breakers are closed again."""
    rate: float = RATE
    prepare: Prepare | None = None
    """Comes before the traffic, and finds out what its answers are while all is well."""


@dataclass(frozen=True, slots=True)
class Result:
    act: Act
    bare: Measured
    """Without the sidecar."""
    beside: Measured
    """With it."""
    said: str
    retries: dict[str, int]
    """By reason."""
    cache: dict[str, int]
    """Requests of clients by what the cache did."""
    breaker: dict[str, int]
    """Transitions, by the state entered."""
    still_open: bool
    fallbacks: dict[str, int]
    """By the rung that answered."""


async def perform(act: Act, stage: Stage, payloads: Payloads) -> Result:
    """Plays one act to both sides at once."""
    calls = [act.traffic(payloads, number) for number in range(int(act.rate * act.seconds))]
    if act.prepare is not None:
        calls = await act.prepare(stage, calls)
    before, received = Counts(await stage.metrics()), stage.received()
    sides = [Clients(url, act.patience, stage.clock) for url in (stage.bare_url, stage.sidecar_url)]
    load = asyncio.create_task(arrive(sides, calls, act.rate, stage.clock))
    try:
        said = await act.script(stage)
        await load
        # An answer to this means that the app is through with what it had received before.
        await stage.break_apps({"mode": "ok"})
    finally:
        load.cancel()
        for side in sides:
            await side.close()
    bare, beside = (side.measured for side in sides)
    for measured, now, then in zip((bare, beside), stage.received(), received, strict=True):
        measured.calls = now - then
    if act.until_closed:
        await _until_closed(stage, payloads)
    after = Counts(await stage.metrics())
    return Result(
        act,
        bare,
        beside,
        said,
        after.since(before, "nextvision_retries_total", "reason"),
        after.since(before, "nextvision_cache_operations_total", "outcome", route=CACHED),
        after.since(before, "nextvision_circuit_breaker_transitions_total", "to"),
        after.any_open,
        after.since(before, "nextvision_fallbacks_total", "rung"),
    )


class Counts:
    """The sidecar's own figures, as its `/metrics` tells them."""

    def __init__(self, exposition: str) -> None:
        self._samples = [
            sample for family in text_string_to_metric_families(exposition) for sample in family.samples
        ]

    def by(self, name: str, label: str, **only: str) -> dict[str, int]:
        """Sums by a label's values, of the samples that have the labels `only`."""
        sums: dict[str, int] = {}
        for sample in self._samples:
            if sample.name == name and only.items() <= sample.labels.items():
                key = sample.labels.get(label, "")
                sums[key] = sums.get(key, 0) + int(sample.value)
        return sums

    def since(self, before: Counts, name: str, label: str, **only: str) -> dict[str, int]:
        earlier = before.by(name, label, **only)
        grown = {key: count - earlier.get(key, 0) for key, count in self.by(name, label, **only).items()}
        return {key: count for key, count in grown.items() if count > 0}

    @property
    def any_open(self) -> bool:
        return any(
            sample.value > 0 for sample in self._samples if sample.name == "nextvision_circuit_breaker_state"
        )


async def _until_closed(stage: Stage, payloads: Payloads) -> None:
    """Sends what a probing breaker needs; gives up after 6 s: the result then says that it is open."""
    clients = Clients(stage.sidecar_url, 3.0, stage.clock)
    try:
        for _ in range(30):
            if not Counts(await stage.metrics()).any_open:
                return
            await clients.send(payloads.cv(), stage.clock.now())
            await stage.clock.sleep(0.2)
    finally:
        await clients.close()


# -- the scripts -----------------------------------------------------------------------------------


async def _all_well(stage: Stage) -> str:
    # Google takes 40 ms a call, as a cold request of the real app suggests.
    await stage.break_providers({"google": {"mode": "slow", "delay": 0.04}})
    return "Nothing is broken."


async def _crash(stage: Stage) -> str:
    await stage.clock.sleep(1.0)
    away = await stage.crash_apps()
    return f"Both apps were killed after 1 s and started again; they were away for {away:.1f} s."


async def _again(stage: Stage) -> str:
    await stage.clock.sleep(2.0)
    await stage.break_apps({"mode": "burst503", "every": 60.0, "for": 60.0})
    await stage.clock.sleep(2.0)
    await stage.break_apps({"mode": "ok"})
    return (
        "Twenty matchings were asked for over and over; after 2 s both apps answered 503 to everything, "
        "for 2 s."
    )


async def _bursts(stage: Stage) -> str:
    await stage.break_apps({"mode": "burst503", "every": 1.2, "for": 0.3})
    await stage.clock.sleep(5.0)
    await stage.break_apps({"mode": "ok"})
    return "Both apps answered 503 to everything during the first 0.3 s of each 1.2 s."


async def _hang(stage: Stage) -> str:
    await stage.break_apps({"mode": "hang", "one_in": 10})
    await stage.clock.sleep(4.0)
    await stage.break_apps({"mode": "ok"})
    return "Both apps never answered each tenth request; a client gives up after 4 s."


async def _stall(stage: Stage) -> str:
    await stage.break_providers({"openai": {"mode": "slow", "delay": 0.4}})
    await stage.clock.sleep(5.0)
    await stage.break_providers({"openai": {"mode": "ok"}})
    return (
        "4 requests a second had a CV read by OpenAI, which took 0.4 s a call; meanwhile an app stands "
        "still, for all its clients."
    )


ACTS = (
    Act("all well", 3.0, 3.0, _all_well),
    Act("app killed and restarted", 5.0, 20.0, _crash),
    Act("app answers 503 in bursts", 5.0, 3.0, _bursts),
    Act("the same again and again, app failing", 5.0, 3.0, _again, Payloads.asked_again),
    Act("app hangs now and then", 4.0, 4.0, _hang),
    Act("OpenAI slow, app stands still", 5.0, 3.0, _stall, Payloads.with_cvs, until_closed=True),
)

"""`mode: shadow` is one thing, whichever policy is in it."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.config.schema import Policy, Route
from sidecar.errors import ConnectionReset
from sidecar.showing import pipeline_names
from tests.support.clock import settle
from tests.support.script import Bench, answer, fail, hang

RETRY: dict[str, Any] = {"attempts": 3, "backoff": {"strategy": "fixed", "base": "100ms", "max": "100ms"}}
REJECTING: dict[str, dict[str, Any]] = {
    "rate_limit": {"rate": "1/h", "burst": 1},
    "circuit_breaker": {"consecutive": 1, "open_for": "1h", "open_max": "1h"},
    "concurrency_limit": {"max": 1},
    "pace": {"rate": "1/h", "burst": 1, "patience": "1s"},
}


def test_every_rejecting_policy_has_it() -> None:
    """These, and no others: what refuses nothing has nothing to record."""
    models = {name: field.annotation for name, field in Policy.model_fields.items()}
    with_mode = [name for name, model in models.items() if "mode" in str(_keys(model))]
    assert with_mode == list(REJECTING)


def _keys(annotation: Any) -> list[str]:
    for model in getattr(annotation, "__args__", (annotation,)):
        if hasattr(model, "model_fields"):
            return list(model.model_fields)
    return []


async def used_up(bench: Bench, settings: dict[str, Any]) -> None:
    """Another route has used up what the policy would let through, or failed what it watches."""
    send = bench.route("before", **settings)
    bench.script = [hang() if "concurrency_limit" in settings else fail(ConnectionReset())]
    send()
    await settle()
    bench.calls.clear()


@pytest.mark.parametrize("name", REJECTING)
async def test_it_refuses_nothing_and_counts(name: str) -> None:
    """One word in the trail, one counter, and the answer of the upstream."""
    bench = Bench()
    policies = {name: {**REJECTING[name], "mode": "shadow"}}
    await used_up(bench, policies)
    route = "before" if name == "rate_limit" else "all"  # of which each route has its own
    bench.script = [answer()]
    response = await bench.clock.complete(bench.route(route, **policies)())
    assert response.status == 200
    assert bench.sent[-1].note_list == [(name, "would-reject")]
    assert bench.metrics.route(route, "app").shadow_rejections == {name: 1}


@pytest.mark.parametrize("name", REJECTING)
async def test_a_request_counts_once(name: str) -> None:
    """What an enforcing policy refuses is not repeated: repetitions of what it would refuse do not count."""
    bench = Bench()
    policies = {name: {**REJECTING[name], "mode": "shadow"}}
    await used_up(bench, policies)
    route = "before" if name == "rate_limit" else "all"
    bench.script = [fail(ConnectionReset()), fail(ConnectionReset()), answer()]
    response = await bench.clock.complete(bench.route(route, **policies, retry=RETRY)())
    assert (response.status, bench.sent[-1].attempts) == (200, 3)
    assert bench.metrics.route(route, "app").shadow_rejections == {name: 1}


@pytest.mark.parametrize("name", REJECTING)
def test_it_is_shown(name: str) -> None:
    """Where the layers of a route are listed, nobody takes it for one that protects."""
    route = Route.model_validate({"name": "any", name: {**REJECTING[name], "mode": "shadow"}})
    assert f"{name} (shadow)" in pipeline_names(route)
    assert f"{name} (shadow)" not in pipeline_names(
        Route.model_validate({"name": "any", name: REJECTING[name]})
    )

"""`rate_limit` and `concurrency_limit` in files, and `limits.rate_limit` for all routes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config.load import Loaded, load
from sidecar.config.schema import RateLimit, Route


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(main: str, policy: str = "") -> Loaded:
    Path("sidecar.yaml").write_text(f"policies: [p.yaml]\n{main}", encoding="utf-8")
    Path("p.yaml").write_text(policy or "name: shop\nroutes: [{name: cart}]\n", encoding="utf-8")
    return load(None, {})


def warnings(policy: str, main: str = "") -> list[str]:
    return [str(problem) for problem in loaded(main, f"name: shop\n{policy}").warnings]


def limits(loaded: Loaded) -> dict[str, RateLimit | None]:
    return {route.name: route.rate_limit for policy in loaded.policies for route in policy.routes}


def test_adaptive_has_defaults() -> None:
    """`adaptive: {}` is enough."""
    limit = Route.model_validate({"name": "a", "concurrency_limit": {"adaptive": {}}}).concurrency_limit
    assert limit is not None
    assert limit.adaptive is not None
    assert (limit.adaptive.initial, limit.adaptive.min, limit.adaptive.max) == (8, 2, 64)
    assert (limit.max, limit.queue, limit.queue_size, limit.priority, limit.mode) == (
        None,
        None,
        1000,
        "normal",
        "enforce",
    )


def test_a_route_may_take_the_other_kind_of_limit() -> None:
    """`max: off` under defaults that have one makes room for `adaptive`."""
    policy = (
        "name: shop\ndefaults: {concurrency_limit: {max: 4, queue: 1s}}\n"
        "routes: [{name: cart, concurrency_limit: {max: off, adaptive: {}}}]\n"
    )
    limit = loaded("", policy).policies[0].routes[0].concurrency_limit
    assert limit is not None
    assert (limit.max, limit.queue) == (None, 1)
    assert limit.adaptive is not None


WITHOUT_EFFECT = {
    "concurrency_limit: {max: 4, queue_size: 10}": (
        "2:63: routes.cart.concurrency_limit.queue_size: warning: nobody waits: queue is off "
        "(write queue: 1s)"
    ),
    "concurrency_limit: {adaptive: {min: 8, max: 8}}": (
        "2:53: routes.cart.concurrency_limit.adaptive: warning: never changes: min is max "
        "(write max in place of adaptive)"
    ),
    "rate_limit: {rate: 1/s, failure: open}": (
        "2:56: routes.cart.rate_limit.failure: warning: without effect: each replica counts by itself "
        "(write shared: true)"
    ),
    "rate_limit: {rate: 1/s, shared: true}": (
        "2:55: routes.cart.rate_limit.shared: warning: there is no Redis that replicas share "
        "(write cache.redis in sidecar.yaml)"
    ),
}


@pytest.mark.parametrize("setting", WITHOUT_EFFECT)
def test_warns_of_what_has_no_effect(setting: str) -> None:
    """Each by itself is right."""
    assert warnings(f"routes: [{{name: cart, {setting}}}]") == [f"p.yaml:{WITHOUT_EFFECT[setting]}"]


def test_shared_limits_are_fine_with_a_redis() -> None:
    """No warning, whatever `failure` says."""
    policy = "routes: [{name: cart, rate_limit: {rate: 1/s, shared: true, failure: closed}}]"
    assert warnings(policy, "cache: {redis: redis://redis}\n") == []


GENERAL = "limits: {rate_limit: {rate: 1000/m, burst: 20}}\n"
POLICY = """\
name: shop
routes:
  - {name: own, match: {path: /own}, rate_limit: {rate: 1/s}}
  - {name: off, match: {path: /off}, rate_limit: off}
  - {name: cart}
"""


def test_the_general_limit_is_for_routes_that_say_nothing() -> None:
    """A route's own, or its `off`, stands."""
    found = limits(loaded(GENERAL, POLICY))
    assert found["off"] is None
    assert found["own"] is not None
    assert (found["own"].rate, found["own"].scope) == (1, "route")
    assert found["cart"] == loaded(GENERAL).config.limits.rate_limit


def test_the_general_limit_counts_all_together() -> None:
    """Unless it says that each route counts by itself."""
    general = loaded(GENERAL).config.limits.rate_limit
    assert general is not None
    assert (general.rate, general.scope) == (1000 / 60, "all")
    each = loaded("limits: {rate_limit: {rate: 1/s, scope: route}}\n").config.limits.rate_limit
    assert each is not None
    assert each.scope == "route"


def test_defaults_of_a_file_go_before_the_general_limit() -> None:
    """`off` there, too."""
    policy = "name: shop\ndefaults: {rate_limit: %s}\nroutes: [{name: cart}]\n"
    assert limits(loaded(GENERAL, policy % "off")) == {"cart": None}
    found = limits(loaded(GENERAL, policy % "{rate: 2/s}"))["cart"]
    assert found is not None
    assert found.rate == 2


def test_the_general_limit_is_for_ingress() -> None:
    """What the app sends to others is no client's request."""
    policy = "name: maps\ndirection: egress\nhosts: [maps.example]\nroutes: [{name: all}]\n"
    assert limits(loaded(GENERAL, policy)) == {"all": None}


def test_the_general_limit_keeps_its_origin() -> None:
    """`sidecar explain` can say where it was written."""
    origins = loaded(GENERAL, POLICY).origins
    assert origins["policies.shop.routes.cart.rate_limit.rate"].short == "sidecar.yaml:2"
    assert "policies.shop.routes.own.rate_limit.burst" not in origins


def test_an_environment_may_have_a_limit() -> None:
    """As the shipped file has for production."""
    main = (
        "environment: production\n"
        "environments: {production: {limits: {rate_limit: {rate: 1000/m, burst: 20}}}}\n"
    )
    limit = limits(loaded(main))["cart"]
    assert limit is not None
    assert limit.burst == 20

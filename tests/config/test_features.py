"""What feature flags take from policies."""

from __future__ import annotations

import pytest

from sidecar.config.features import FLAGS, LAYERS, NAMES, Features, switched_off, without_features
from sidecar.config.schema import Policy, PolicyFile, Route

ROUTE = {
    "name": "all",
    "match": {"path": "/*"},
    "cache": {"ttl": "1m", "refresh_ahead": "80%", "warm": ["/x"]},
    "retry": {"attempts": 2, "hedge": {}},
    "circuit_breaker": {},
    "fallback": [{"respond": {"status": 503, "text": "later"}}],
    "rate_limit": {"rate": "10/s"},
    "concurrency_limit": {"max": 4},
    "pace": {},
    "deadline": "5s",
}


def policy(name: str = "app") -> PolicyFile:
    return PolicyFile.model_validate({"name": name, "routes": [ROUTE]})


def route(features: Features, name: str = "app") -> Route:
    [left] = without_features([policy(name)], features)
    return left.routes[0]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_off_is_in_no_route(name: str) -> None:
    """That one and no other, and the trail's word for it is its name."""
    off = Features.model_validate({name: False})
    left = route(off)
    missing = [key for key in Policy.model_fields if getattr(policy().routes[0], key) != getattr(left, key)]
    assert missing == [name]
    assert getattr(left, name) is None
    assert switched_off(policy().routes[0], off, "app") == (name,)


def test_all_on_changes_nothing() -> None:
    """The policies are the ones that were read."""
    assert without_features([policy()], Features()) == (policy(),)


def test_optimizations_go_and_what_they_optimize_stays() -> None:
    """The cache and the retries work without them."""
    left = route(Features(optimization=False))
    assert left.cache is not None
    assert (left.cache.refresh_ahead, left.cache.warm) == (None, ())
    assert left.cache.ttl == 60
    assert left.retry is not None
    assert (left.retry.attempts, left.retry.hedge) == (2, None)


def test_google_maps_is_the_file_of_that_name() -> None:
    """Its calls are only observed; other files keep all."""
    off = Features(google_maps=False)
    left = route(off, "google-maps")
    assert all(getattr(left, key) is None for key in Policy.model_fields)
    assert route(off) == policy().routes[0]
    assert switched_off(policy().routes[0], off, "google-maps") == ("google_maps",)


def test_the_guides_flags_lead_to_features_there_are() -> None:
    """None is a label for nothing."""
    assert set(FLAGS.values()) <= set(NAMES)

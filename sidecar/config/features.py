"""Feature flags: what can be switched off as a whole, whatever the policies say. Names are the YAML keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from sidecar.config.base import Model, setting
from sidecar.config.policy import Policy, PolicyFile, Route
from sidecar.config.units import Switch

FLAGS: Final[Mapping[str, str]] = {
    "FEATURE_CACHING": "cache",
    "FEATURE_RETRY_MECHANISMS": "retry",
    "FEATURE_BATCH_PROCESSING": "batch",
    "FEATURE_HEALTH_MONITORING": "health_monitoring",
    "FEATURE_STRUCTURED_LOGGING": "structured_logging",
    "FEATURE_PERFORMANCE_OPTIMIZATION": "optimization",
    "FEATURE_GOOGLE_MAPS_INTELLIGENCE": "google_maps",
    "FEATURE_STRESS_TEST": "stress_test",
}
"""The variables of the app's own guide, and the feature that each switches; the last is of the same form.
FEATURE_ADAPTIVE_WEIGHTING is not among them: what it weighs is inside the app."""

GOOGLE_MAPS: Final = "google-maps"
LAYERS: Final = (
    "cache",
    "retry",
    "circuit_breaker",
    "fallback",
    "rate_limit",
    "concurrency_limit",
    "pace",
)
"""Features that are a policy key: switched off, pipelines are compiled without the layer."""
_OPTIMIZATIONS: Final = {"refresh_ahead": None, "adaptive_ttl": None, "warm": ()}


class Features(Model):
    """What is switched on. Off: whatever the policies say of it does not count."""

    cache: Switch = setting(True, "Answers are stored and served from the store. FEATURE_CACHING.", False)
    retry: Switch = setting(True, "Attempts are repeated. FEATURE_RETRY_MECHANISMS.", False)
    circuit_breaker: Switch = setting(True, "Circuit breakers.", False)
    fallback: Switch = setting(True, "Fallbacks.", False)
    rate_limit: Switch = setting(True, "Rate limits of clients, `limits.rate_limit` included.", False)
    concurrency_limit: Switch = setting(True, "Limits on requests at once.", False)
    pace: Switch = setting(True, "Pacing by what providers say of their quotas.", False)
    optimization: Switch = setting(
        True,
        "Hedging, refreshing ahead, adaptive lifetimes and warming. FEATURE_PERFORMANCE_OPTIMIZATION.",
        False,
    )
    google_maps: Switch = setting(
        True,
        f"The policies of the file named {GOOGLE_MAPS}; off, its calls are only observed. "
        "FEATURE_GOOGLE_MAPS_INTELLIGENCE.",
        False,
    )
    health_monitoring: Switch = setting(True, "The app is probed. FEATURE_HEALTH_MONITORING.", False)
    structured_logging: Switch = setting(
        True, "`logging.format` counts; off, logs are text for people. FEATURE_STRUCTURED_LOGGING.", False
    )
    batch: Switch = setting(True, "Batches are taken. FEATURE_BATCH_PROCESSING.", False)
    stress_test: Switch = setting(
        True,
        "Stress tests may be started through the admin listener; in production only where this is written. "
        "FEATURE_STRESS_TEST.",
        False,
    )


NAMES: Final = tuple(Features.model_fields)


def without_features(policies: Sequence[PolicyFile], features: Features) -> tuple[PolicyFile, ...]:
    """The policy files as far as `features` leaves them on."""
    off = {name for name in NAMES if not getattr(features, name)}
    if not off:
        return tuple(policies)
    return tuple(
        policy.model_copy(
            update={"routes": tuple(_without(route, off, policy.name) for route in policy.routes)}
        )
        for policy in policies
    )


def _without(route: Route, off: set[str], policy: str) -> Route:
    changes: dict[str, object] = {key: None for key in LAYERS if key in off}
    if policy == GOOGLE_MAPS and "google_maps" in off:
        changes |= dict.fromkeys(Policy.model_fields)
    route = route.model_copy(update=changes)
    if "optimization" in off:
        if route.cache is not None:
            route = route.model_copy(update={"cache": route.cache.model_copy(update=_OPTIMIZATIONS)})
        if route.retry is not None and route.retry.hedge is not None:
            route = route.model_copy(update={"retry": route.retry.model_copy(update={"hedge": None})})
    return route


def switched_off(route: Route, features: Features, policy: str) -> tuple[str, ...]:
    """The features that a route asks for and that are off, in the order of `NAMES`."""
    off = []
    for name in NAMES:
        if getattr(features, name):
            continue
        if (
            (name in LAYERS and getattr(route, name) is not None)
            or (name == "google_maps" and policy == GOOGLE_MAPS)
            or (name == "optimization" and _without(route, {name}, policy) != route)
        ):
            off.append(name)
    return tuple(off)

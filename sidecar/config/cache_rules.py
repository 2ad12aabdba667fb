"""A route's `cache` as the decisions take it: what the data plane and `explain` have in common."""

from __future__ import annotations

from sidecar.config.cache_policy import Cache, CacheKey
from sidecar.config.policy import Route
from sidecar.decisions.cache_control import SURROGATE, TARGETS
from sidecar.decisions.cache_key import BodyRule, CacheKeys, KeyRules
from sidecar.decisions.cache_rules import CacheRules
from sidecar.decisions.canonical_url import QueryRules


def cache_rules(cache: Cache) -> CacheRules:
    """What the policy adds to RFC 9111."""
    return CacheRules(
        ttl=cache.ttl,
        negative_ttl=cache.negative_ttl,
        stale_while_revalidate=cache.stale_while_revalidate,
        stale_if_error=cache.stale_if_error,
        max_age_total=cache.max_age_total,
        respect_origin=cache.respect_origin,
        methods=frozenset(cache.methods),
        # With a key for each credential nothing is shared between them.
        share_authorized=cache.share_authorized or "authorization" in cache.key.headers,
        share_private=cache.share_private,
        distrust_age=cache.distrust_age,
        targets=(*TARGETS, SURROGATE),
    )


def key_rules(key: CacheKey) -> KeyRules:
    """What tells requests apart."""
    query = QueryRules(
        drop=frozenset(key.query.drop),
        fold=frozenset(key.query.fold),
        bucket=dict(key.query.bucket),
        sort=key.query.sort,
    )
    body = BodyRule(key.body or "none")
    return KeyRules(query=query, headers=tuple(name.encode() for name in key.headers), body=body)


def namespace(route: Route) -> str:
    """The first part of the keys of a route that has `cache`."""
    assert route.cache is not None
    return route.cache.namespace or route.name


def cache_keys(route: Route) -> CacheKeys:
    """Makes the keys of a route that has `cache`."""
    assert route.cache is not None
    return CacheKeys(namespace(route), key_rules(route.cache.key))

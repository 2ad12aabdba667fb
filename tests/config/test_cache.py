"""What is said of the cache: where its Redis is, what a route's settings come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.config.cache_rules import cache_rules, key_rules, namespace
from sidecar.config.problems import Origin
from sidecar.decisions.cache_control import SURROGATE, TARGETS
from sidecar.decisions.cache_key import NO_RULES, BodyRule
from sidecar.decisions.cache_rules import PURE, CacheRules
from tests.config.test_load import loaded, route


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def redis(main: str, **env: str) -> str | None:
    """The URL of the Redis that a configuration comes to."""
    url = loaded(main, env=env).config.cache.redis
    return None if url is None else url.get_secret_value()


@pytest.mark.parametrize(
    "main", ["", "cache: {memory: 1MiB}", 'cache: {redis: "${REDIS_URL:-}"}', "cache: {redis: ''}"]
)
def test_redis_is_where_the_variables_say(main: str) -> None:
    """Ours first, then those of the app; none means memory only."""
    assert redis(main) is None
    assert redis(main, REDIS_URL="") is None
    assert redis(main, REDIS_HOST="cache") == "redis://cache:6379"
    assert redis(main, REDIS_HOST="cache", REDIS_PORT="7000") == "redis://cache:7000"
    assert redis(main, REDIS_HOST="::1", REDIS_PASSWORD="a@/b") == "redis://:a%40%2Fb@[::1]:6379"
    assert redis(main, REDIS_HOST="cache", REDIS_URL="redis://other:1") == "redis://other:1"
    assert redis(main, REDIS_PORT="7000", REDIS_PASSWORD="x") is None


def test_what_is_written_goes_before_the_variables() -> None:
    """`off` too: then there is no Redis whatever the environment is for."""
    assert redis('cache: {redis: "redis://a:1"}', REDIS_URL="redis://b:2") == "redis://a:1"
    assert redis("cache: {redis: off}", REDIS_URL="redis://b:2", REDIS_HOST="c") is None


@pytest.mark.parametrize(
    "url",
    [
        "rediss://user:pass@cache:6380/1",
        "unix:///run/valkey.sock?db=2",
        "redis+sentinel://a,b:26380/mymaster/1",
        "rediss+cluster://:pass@a:7000,b:7001",
        "valkey://cache",
    ],
)
def test_every_form_of_a_redis_url_is_taken(url: str) -> None:
    """What the store understands, the configuration accepts."""
    assert redis(f'cache: {{redis: "{url}"}}') == url


def test_a_redis_url_is_not_shown() -> None:
    """It may hold a password, wherever it was written."""
    found = loaded('cache: {redis: "redis://:hunter2@a"}')
    assert "hunter2" not in repr(found.config)
    assert "hunter2" not in found.config.model_dump_json()
    assert loaded("", env={"REDIS_URL": "redis://a"}).origins["cache.redis"] == Origin(
        "REDIS_URL", secret=True
    )


def test_a_cache_without_settings_adds_nothing_to_the_origin() -> None:
    """The rules and the key are those of RFC 9111 alone."""
    cart = route("name: shop\nroutes: [{name: cart, cache: {}}]")
    assert cart.cache is not None
    assert cache_rules(cart.cache) == replace(PURE, targets=(*TARGETS, SURROGATE))
    assert key_rules(cart.cache.key) == NO_RULES
    assert namespace(cart) == "cart"


def test_a_cache_with_all_its_settings() -> None:
    """Each says to the decisions what it says in YAML."""
    cart = route(
        """
name: shop
routes:
  - name: cart
    match: {path: "/cart/{id}"}
    cache:
      ttl: 30m
      negative_ttl: 1m
      stale_while_revalidate: 10s
      stale_if_error: 6h
      max_age_total: 30d
      respect_origin: false
      methods: [GET, POST]
      key:
        query: {drop: [key, utm_*], fold: [address], bucket: {departure_time: 5m}, sort: true}
        headers: [Accept-Language]
        body: json
      tags: ["cart:{id}"]
      namespace: carts-1
      max_object: 64KiB
      adaptive_ttl: {min: 1m, max: 1h}
      refresh_ahead: 80%
      warm: [/cart/7?full=1]
      share_authorized: true
      share_private: true
"""
    )
    cache = cart.cache
    assert cache is not None
    assert cache_rules(cache) == CacheRules(
        targets=(*TARGETS, SURROGATE),
        ttl=1800,
        negative_ttl=60,
        stale_while_revalidate=10,
        stale_if_error=21600,
        max_age_total=2592000,
        respect_origin=False,
        methods=frozenset({"GET", "POST"}),
        share_authorized=True,
        share_private=True,
    )
    rules = key_rules(cache.key)
    assert (rules.headers, rules.body) == ((b"accept-language",), BodyRule.JSON)
    assert (sorted(rules.query.drop), sorted(rules.query.fold)) == (["key", "utm_*"], ["address"])
    assert dict(rules.query.bucket) == {"departure_time": 300}
    assert rules.query.sort
    assert namespace(cart) == "carts-1"
    assert (cache.tags, cache.max_object, cache.warm) == (("cart:{id}",), 65536, ("/cart/7?full=1",))
    assert cache.adaptive_ttl is not None
    assert (cache.adaptive_ttl.min, cache.adaptive_ttl.max, cache.refresh_ahead) == (60, 3600, 0.8)


def test_a_key_per_credential_lets_answers_to_credentials_be_stored() -> None:
    """Nobody shares them then."""
    cache = route("name: shop\nroutes: [{name: cart, cache: {key: {headers: [Authorization]}}}]").cache
    assert cache is not None
    assert cache_rules(cache).share_authorized


def test_a_cache_is_turned_off_and_merged_like_any_policy() -> None:
    """Mappings merge, lists replace, `off` removes; equal settings are one key of the state."""
    text = """
name: shop
defaults: {cache: {ttl: 30m, methods: [GET], key: {query: {drop: [a], bucket: {t: 5m}}}}}
routes:
  - {name: one, match: {path: /1}, cache: {ttl: 1m, key: {query: {drop: [b]}}}}
  - {name: two, match: {path: /2}, cache: off}
  - {name: three, match: {path: /3}}
  - {name: four, match: {path: /4}, cache: {ttl: 1800s}}
"""
    one, two, three, four = loaded(policy=text).policies[0].routes
    assert one.cache is not None
    assert (one.cache.ttl, one.cache.methods) == (60, ("GET",))
    assert (one.cache.key.query.drop, one.cache.key.query.bucket) == (("b",), (("t", 300),))
    assert two.cache is None
    assert three.cache == four.cache
    assert hash(three.cache) == hash(four.cache) != hash(one.cache)
